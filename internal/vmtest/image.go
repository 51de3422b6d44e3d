package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// imageForm is raised when an image of the same packages would come out
// differently.
const imageForm = "1"

// baseImage is what stays the same from run to run.
type baseImage struct {
	release string // of the kernel
	vmlinuz string
	archive string // the root file system, a cpio archive
}

// ensureBase makes the image for a kernel series or finds it in the cache.
func ensureBase(ctx context.Context, o options) (baseImage, error) {
	a, err := newAPT(filepath.Join(o.cache, "packages"))
	if err != nil {
		return baseImage{}, err
	}
	p, err := resolve(ctx, a, o.kernel)
	if err != nil && os.Geteuid() == 0 {
		say("asking for fresh package lists, because: %v", err)
		if _, err := output(ctx, "", "apt-get", "update", "-qq"); err != nil {
			return baseImage{}, err
		}
		p, err = resolve(ctx, a, o.kernel)
	}
	if err != nil {
		return baseImage{}, err
	}
	dir := filepath.Join(o.cache, p.release)
	b := baseImage{release: p.release, vmlinuz: filepath.Join(dir, "vmlinuz"), archive: filepath.Join(dir, "base.cpio")}
	stamp := filepath.Join(dir, "stamp")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == p.stamp() {
		return b, nil
	}
	if err := p.fetch(ctx, a); err != nil {
		return b, err
	}
	say("making the image for %s", p.release)
	if err := os.RemoveAll(dir); err != nil {
		return b, fmt.Errorf("remove old image: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return b, fmt.Errorf("make image folder: %w", err)
	}
	if err := buildBase(ctx, a, p, b); err != nil {
		return b, err
	}
	if err := os.WriteFile(stamp, []byte(p.stamp()), 0o644); err != nil {
		return b, fmt.Errorf("write stamp: %w", err)
	}
	return b, nil
}

// buildBase unpacks the packages into the archive.
func buildBase(ctx context.Context, a apt, p packageSet, b baseImage) error {
	f, err := os.Create(b.archive)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	return writeImage(f, func(c *cpioWriter) error {
		if err := skeleton(c); err != nil {
			return err
		}
		for _, file := range p.files() {
			visit := func(h *tar.Header, r io.Reader) error { return addPackaged(c, h, r) }
			if strings.HasPrefix(file, p.kernel+"_") {
				visit = func(h *tar.Header, r io.Reader) error { return keepKernel(b, h, r) }
			}
			if err := unpack(ctx, filepath.Join(a.dir, file), visit); err != nil {
				return err
			}
		}
		return addModules(ctx, c, filepath.Dir(b.archive), p.release)
	})
}

// writeImage writes one archive to f, and closes f.
func writeImage(f *os.File, fill func(*cpioWriter) error) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	c := newCPIO(w)
	if err := fill(c); err != nil {
		return err
	}
	if err := c.close(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

// skeleton is what no package brings: Debian's merged /usr, mount points, and
// the console, which the kernel opens before anything else.
func skeleton(c *cpioWriter) error {
	errs := []error{c.charDevice("dev/console", 0o600, 5, 1)}
	for _, dir := range []string{"proc", "sys", "run", "var/tmp", "root", "etc", "mnt"} {
		errs = append(errs, c.dir(dir, 0o755))
	}
	errs = append(errs, c.dir("tmp", 0o1777))
	for _, dir := range merged {
		errs = append(errs, c.dir("usr/"+dir, 0o755), c.symlink(dir, "usr/"+dir))
	}
	for name, text := range map[string]string{
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":    "root:x:0:\n",
		"etc/hosts":    "127.0.0.1 localhost\n::1 localhost\n",
		"etc/hostname": "ptvm\n",
	} {
		errs = append(errs, c.file(name, 0o644, int64(len(text)), strings.NewReader(text)))
	}
	// What the packaged busybox does not link by itself.
	for _, applet := range []string{"sh", "cat", "true", "false", "sleep", "ls", "dmesg", "mount", "umount"} {
		errs = append(errs, c.symlink("usr/bin/"+applet, "busybox"))
	}
	return errors.Join(errs...)
}

// merged are the folders that Debian 12 keeps below /usr.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// unused are parts of packages that no test ever opens.
var unused = []string{
	"usr/share/", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/libperl",
	"usr/bin/perl", "var/", "usr/lib/systemd", "usr/lib/locale", "usr/lib/x86_64-linux-gnu/security", "usr/include",
}

// addPackaged puts one entry of a package into the image.
func addPackaged(c *cpioWriter, h *tar.Header, r io.Reader) error {
	name := imagePath(h.Name)
	for _, u := range unused {
		if strings.HasPrefix(name, u) {
			return nil
		}
	}
	switch {
	case h.Typeflag == tar.TypeReg:
		return c.file(name, uint32(h.Mode&0o7777), h.Size, r)
	case c.known[name]:
		return nil
	case h.Typeflag == tar.TypeDir:
		return c.dir(name, uint32(h.Mode&0o7777))
	case h.Typeflag == tar.TypeSymlink:
		return c.symlink(name, h.Linkname)
	case h.Typeflag == tar.TypeLink:
		return c.symlink(name, "/"+imagePath(h.Linkname))
	}
	return nil
}

// imagePath is where something that a package calls name lies in the image.
func imagePath(name string) string {
	name = path.Clean(strings.TrimPrefix(name, "./"))
	first, _, _ := strings.Cut(name, "/")
	for _, dir := range merged {
		if first == dir {
			return "usr/" + name
		}
	}
	return name
}

// moduleFolders are the parts of a kernel's modules that the tests can use:
// networks without hardware, and what these build on.
var moduleFolders = []string{"net/", "lib/", "crypto/", "arch/x86/crypto/", "drivers/net/"}

// keepKernel takes the kernel and its modules out of the kernel's package,
// into the folder of the image.
func keepKernel(b baseImage, h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	to := filepath.Join(filepath.Dir(b.archive), "root", name)
	switch _, module, inTree := strings.Cut(name, "/kernel/"); {
	case strings.HasPrefix(name, "boot/vmlinuz-"):
		to = b.vmlinuz
	case !strings.HasPrefix(name, "lib/modules/"):
		return nil
	case inTree && (!wantedModule(module)):
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	f, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("take %s out of package: %w", name, err)
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("take %s out of package: %w", name, err)
	}
	return nil
}

func wantedModule(name string) bool {
	if strings.HasPrefix(name, "drivers/net/ethernet/") || strings.HasPrefix(name, "drivers/net/wireless/") {
		return false
	}
	for _, f := range moduleFolders {
		if strings.HasPrefix(name, f) {
			return true
		}
	}
	return false
}

// addModules indexes the modules and moves them into the image.
func addModules(ctx context.Context, c *cpioWriter, dir, release string) error {
	root := filepath.Join(dir, "root")
	if _, err := output(ctx, "", "depmod", "-b", root, release); err != nil {
		return err
	}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		return addFile(c, imagePath(name), file)
	})
	if err != nil {
		return fmt.Errorf("add modules: %w", err)
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("remove unpacked modules: %w", err)
	}
	return nil
}

// addFile puts a file of the host into the image, with its permissions.
func addFile(c *cpioWriter, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	return c.file(name, uint32(st.Mode().Perm()), st.Size(), f)
}

// unpack calls visit for each entry of a package's file system.
func unpack(ctx context.Context, file string, visit func(*tar.Header, io.Reader) error) error {
	cmd, err := command(ctx, "", "dpkg-deb", "--fsys-tarfile", file)
	if err != nil {
		return err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
	}
	err = walkTar(pipe, visit)
	_, drained := io.Copy(io.Discard, pipe)
	if err = errors.Join(err, drained, cmd.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
	}
	return nil
}

func walkTar(r io.Reader, visit func(*tar.Header, io.Reader) error) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(h, t); err != nil {
			return err
		}
	}
}
