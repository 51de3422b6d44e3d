package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// minKernel is the oldest kernel the data plane is made for.
const (
	minKernelMajor = 5
	minKernelMinor = 15
)

// Preflight finds out whether this machine can run a lab with that many
// traffic connections, without leaving a trace. The error joins one line for
// each thing that is missing, each with how to mend it.
func Preflight(connections int) error {
	var errs []error
	if os.Geteuid() != 0 {
		// Everything else would only fail for the same reason.
		return errors.New("not root: network namespaces and eBPF need it; run it again with sudo")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		errs = append(errs, checkKernel(unix.ByteSliceToString(uts.Release[:])))
	}
	return errors.Join(append(errs, checkNamespaces(), checkBPFFS(defaultBPFFS), checkFiles(connections))...)
}

// checkKernel wants a release like 6.1.0-18-amd64 to be new enough.
func checkKernel(release string) error {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return nil // a strange name proves nothing
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' }))
	if err1 != nil || err2 != nil || major > minKernelMajor || (major == minKernelMajor && minor >= minKernelMinor) {
		return nil
	}
	return fmt.Errorf("kernel %s is too old: boot %d.%d or newer", release, minKernelMajor, minKernelMinor)
}

// checkNamespaces tries the three things the network is built of in a
// namespace that ends with the thread.
func checkNamespaces() error {
	var g errgroup.Group
	g.Go(func() error {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespaces cannot be made (%w): run outside of a container, or give it CAP_SYS_ADMIN", err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("bridges cannot be made (%w): load the module: modprobe bridge", err)
		}
		attrs.Name = "v0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "v1"}); err != nil {
			return fmt.Errorf("veth pairs cannot be made (%w): load the module: modprobe veth", err)
		}
		return nil
	})
	return g.Wait()
}

// checkBPFFS wants a BPF file system on dir, or the means to mount one.
func checkBPFFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("no place for the BPF file system (%w): mount sysfs on /sys, on a kernel with CONFIG_BPF_SYSCALL", err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err == nil && !bytes.Contains(known, []byte("\tbpf\n")) {
		return fmt.Errorf("the kernel has no BPF file system for %s: boot one with CONFIG_BPF_SYSCALL", dir)
	}
	return nil
}

// spareFiles is what a lab needs besides its traffic.
const spareFiles = 512

// checkFiles wants room for both ends of each connection, which live in this
// process.
func checkFiles(connections int) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	// Two for each connection, and one more while it is being opened.
	if need := uint64(2*connections + spareFiles); lim.Cur < need {
		return fmt.Errorf("%d open files are allowed and %d needed: ulimit -n %d, or fewer connections", lim.Cur, need, need)
	}
	return nil
}
