package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// netnsDir is where named network namespaces are bound, as iproute2 does it.
const netnsDir = "/run/netns"

func nsPath(name string) string { return filepath.Join(netnsDir, name) }

// createNS makes the named network namespace with loopback up. Segments have no
// use for IPv6 of their own: a bridge carries frames.
func createNS(name string, withIPv6 bool) error {
	var g errgroup.Group
	g.Go(func() error {
		// The thread is never unlocked: it has moved into the new namespace
		// and ends with this goroutine.
		runtime.LockOSThread()
		h, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
		defer h.Close()
		return prepareNS(name, withIPv6)
	})
	return g.Wait()
}

// prepareNS sets up the namespace the calling thread is in.
func prepareNS(name string, withIPv6 bool) error {
	settings := map[string]string{
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":     "1",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
		// A bridge that shows every frame to netfilter only costs time here.
		"/proc/sys/net/bridge/bridge-nf-call-iptables":  "0",
		"/proc/sys/net/bridge/bridge-nf-call-ip6tables": "0",
		"/proc/sys/net/bridge/bridge-nf-call-arptables": "0",
	}
	if withIPv6 {
		for _, conf := range []string{"all", "default"} {
			settings["/proc/sys/net/ipv6/conf/"+conf+"/disable_ipv6"] = "0"
			// No two hosts can have one link-local address, and no router advertises:
			// waiting for either would only make starts slower.
			settings["/proc/sys/net/ipv6/conf/"+conf+"/accept_dad"] = "0"
			settings["/proc/sys/net/ipv6/conf/"+conf+"/router_solicitations"] = "0"
		}
	}
	for path, value := range settings {
		err := os.WriteFile(path, []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("namespace %s: find lo: %w", name, err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("namespace %s: set lo up: %w", name, err)
	}
	return nil
}

// haveIPv6 reports whether the kernel was started with IPv6.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all")
	return err == nil
}

// deleteNS removes the named namespace. A name that is not there, or that was
// left half made, is no error. The namespace itself lives until its last
// process and socket are gone.
func deleteNS(name string) error {
	path := nsPath(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// inNS runs fn on a thread that is in the named namespace. Sockets made by fn
// belong to that namespace for good, wherever they are used later.
func inNS(name string, fn func() error) error {
	var g errgroup.Group
	g.Go(func() error {
		runtime.LockOSThread()
		restore, err := enterNS(name)
		if err != nil {
			runtime.UnlockOSThread()
			return err
		}
		err = fn()
		if rerr := restore(); rerr != nil {
			// The thread stays locked and ends with this goroutine, so that
			// no other goroutine wakes up in a strange namespace.
			return errors.Join(err, rerr)
		}
		runtime.UnlockOSThread()
		return err
	})
	return g.Wait()
}

// enterNS moves the calling, locked thread into the named namespace. When it
// fails the thread has not moved.
func enterNS(name string) (restore func() error, err error) {
	old, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open this thread's namespace: %w", err)
	}
	h, err := netns.GetFromName(name)
	if err != nil {
		old.Close()
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	defer h.Close()
	if err := netns.Set(h); err != nil {
		old.Close()
		return nil, fmt.Errorf("enter namespace %s: %w", name, err)
	}
	return func() error {
		defer old.Close()
		if err := netns.Set(old); err != nil {
			return fmt.Errorf("leave namespace %s: %w", name, err)
		}
		return nil
	}, nil
}

// nlHandle opens a netlink socket in the named namespace.
func nlHandle(name string) (*netlink.Handle, error) {
	h, err := netns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	defer h.Close()
	nl, err := netlink.NewHandleAt(h, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in namespace %s: %w", name, err)
	}
	return nl, nil
}
