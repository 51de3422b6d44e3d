package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// defaultBPFFS is the customary place of the BPF file system.
const defaultBPFFS = "/sys/fs/bpf"

// EnsureBPFFS mounts a BPF file system on dir if none is there, and says
// whether it had to. Tests that share one machine call it first, so that no
// lab among them takes the mount away at its end.
func EnsureBPFFS(dir string) (mounted bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return true, nil
}

// releaseBPFFS undoes EnsureBPFFS, unless somebody else has come to use the
// mount: unmounting would silently destroy what they pinned.
func releaseBPFFS(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	for _, e := range entries {
		// The kernel puts two iterators of its own into a fresh bpffs.
		if e.Name() != "maps.debug" && e.Name() != "progs.debug" {
			return nil
		}
	}
	err = unix.Unmount(dir, 0)
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// removePins unpins everything below dir. bpffs knows no recursion of its own
// beyond what a file system does, so this is a plain removal; a directory
// that is not there is no error.
func removePins(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// removePinsByPrefix unpins PREFIX-* in the BPF file system on root.
func removePinsByPrefix(root, prefix string) error {
	dirs, err := filepath.Glob(filepath.Join(root, prefix+"-*"))
	if err != nil {
		return fmt.Errorf("find pins of %s: %w", prefix, err)
	}
	var errs []error
	for _, d := range dirs {
		if err := removePins(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
