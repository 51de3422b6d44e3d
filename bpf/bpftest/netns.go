// Package bpftest helps to test the data plane: network namespaces that vanish with the test,
// pin folders, and packets. It must not be imported by product code.
package bpftest

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"pontoon/internal/roottest"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const bpffs = "/sys/fs/bpf"

// RequirePrivilege skips the test when it cannot load BPF programs, or fails it when
// PONTOON_REQUIRE_PRIV=1 says that it must be able to. It mounts the BPF file system if need be.
func RequirePrivilege(tb testing.TB) {
	tb.Helper()
	roottest.Need(tb)
	var stat unix.Statfs_t
	if err := unix.Statfs(bpffs, &stat); err == nil && int64(stat.Type) == unix.BPF_FS_MAGIC {
		return
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		tb.Fatalf("mount bpf file system: %v", err)
	}
}

// PinDir returns a folder name on the BPF file system that is removed with the test.
func PinDir(tb testing.TB) string {
	tb.Helper()
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		tb.Fatal(err)
	}
	dir := filepath.Join(bpffs, "pt"+hex.EncodeToString(random[:]))
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove pins: %v", err)
		}
	})
	return dir
}

// NS is a network namespace without a name: it ends with the last descriptor and socket.
type NS struct {
	tb     testing.TB
	handle netns.NsHandle
}

// NewNS makes a namespace with its loopback up and forwarding on.
func NewNS(tb testing.TB) *NS {
	tb.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		tb.Fatalf("get namespace: %v", err)
	}
	defer home.Close()
	handle, err := netns.New()
	if err != nil {
		tb.Fatalf("make namespace: %v", err)
	}
	if err := netns.Set(home); err != nil {
		tb.Fatalf("go back to the first namespace: %v", err)
	}
	ns := &NS{tb: tb, handle: handle}
	tb.Cleanup(func() { _ = handle.Close() })
	ns.Do(func() {
		lo, err := netlink.LinkByName("lo")
		ns.must("find loopback", err)
		ns.must("set loopback up", netlink.LinkSetUp(lo))
		ns.Sysctl("net/ipv4/ip_forward", "1")
		ns.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
		ns.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	})
	return ns
}

// With returns the same namespace for another test to report to: a fuzz target may not use what
// its fuzz test brought along.
func (n *NS) With(tb testing.TB) *NS { return &NS{tb: tb, handle: n.handle} }

// Do runs f on a thread in the namespace. Sockets made there stay in it.
func (n *NS) Do(f func()) {
	n.tb.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	n.must("get namespace", err)
	n.must("enter namespace", netns.Set(n.handle))
	defer func() {
		if err := netns.Set(home); err != nil {
			n.tb.Errorf("leave namespace: %v", err) // the thread stays locked and dies
			return
		}
		_ = home.Close()
		runtime.UnlockOSThread()
	}()
	f()
}

// Sysctl writes below /proc/sys; call it in Do. A file that is not there is passed over.
func (n *NS) Sysctl(name, value string) {
	n.tb.Helper()
	// The thread's own view: /proc/sys/net shows the namespace of the reader.
	err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	if err != nil && !os.IsNotExist(err) {
		n.must("write "+name, err)
	}
}

func (n *NS) must(what string, err error) {
	n.tb.Helper()
	if err != nil {
		n.tb.Fatalf("%s: %v", what, err)
	}
}

// Iface is one end of a veth pair.
type Iface struct {
	NS    *NS
	Name  string
	Index int
	MAC   net.HardwareAddr
}

// Veth joins two namespaces. Both ends are up, all offloads as the kernel sets them.
func Veth(a *NS, aName string, b *NS, bName string) (Iface, Iface) {
	a.tb.Helper()
	a.Do(func() {
		pair := netlink.NewVeth(netlink.LinkAttrs{Name: aName})
		pair.PeerName, pair.PeerNamespace = bName, netlink.NsFd(int(b.handle))
		a.must("make veth "+aName, netlink.LinkAdd(pair))
	})
	return a.up(aName), b.up(bName)
}

func (n *NS) up(name string) Iface {
	n.tb.Helper()
	out := Iface{NS: n, Name: name}
	n.Do(func() {
		l, err := netlink.LinkByName(name)
		n.must("find "+name, err)
		n.must("set up "+name, netlink.LinkSetUp(l))
		out.Index, out.MAC = l.Attrs().Index, l.Attrs().HardwareAddr
	})
	return out
}

// Address adds an address such as 10.0.0.1/24.
func (i Iface) Address(prefix string) {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		addr, err := netlink.ParseAddr(prefix)
		i.NS.must("parse "+prefix, err)
		addr.Broadcast = net.IPv4zero
		i.NS.must("add "+prefix, netlink.AddrAdd(i.link(), addr))
	})
}

func (i Iface) link() netlink.Link {
	l, err := netlink.LinkByName(i.Name)
	i.NS.must("find "+i.Name, err)
	return l
}

// Neighbour adds a permanent neighbour entry.
func (i Iface) Neighbour(address string, mac net.HardwareAddr) {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		i.NS.must("add neighbour "+address, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: i.Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(address), HardwareAddr: mac,
		}))
	})
}

// DefaultRoute sends everything else by the gateway.
func (n *NS) DefaultRoute(gateway string) {
	n.tb.Helper()
	n.Do(func() {
		n.must("add default route", netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
	})
}

// Bridge makes a bridge in the namespace and puts the interfaces (of the same namespace) into it.
func (n *NS) Bridge(name string, ports ...Iface) {
	n.tb.Helper()
	n.Do(func() {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		n.must("make bridge", netlink.LinkAdd(bridge))
		n.must("set bridge up", netlink.LinkSetUp(bridge))
		for _, p := range ports {
			n.must("add port "+p.Name, netlink.LinkSetMaster(p.link(), bridge))
		}
	})
}

// Listen opens a TCP listener in the namespace; it is closed with the test.
func (n *NS) Listen(address string) net.Listener {
	n.tb.Helper()
	var l net.Listener
	n.Do(func() {
		var err error
		l, err = net.Listen("tcp", address) // the family of the address
		n.must("listen on "+address, err)
	})
	n.tb.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenUDP opens a UDP socket in the namespace; it is closed with the test.
func (n *NS) ListenUDP(address string) *net.UDPConn {
	n.tb.Helper()
	var c *net.UDPConn
	n.Do(func() {
		var err error
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		n.must("listen on "+address, err)
	})
	n.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial connects from the namespace; the connection is closed with the test.
func (n *NS) Dial(dialer *net.Dialer, network, address string) (net.Conn, error) {
	n.tb.Helper()
	var c net.Conn
	var err error
	n.Do(func() { c, err = dialer.Dial(network, address) })
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	n.tb.Cleanup(func() { _ = c.Close() })
	return c, nil
}

// Hold adds the address to the interface when held, announcing it, and removes it otherwise.
func (i Iface) Hold(prefix string, held bool) {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		addr, err := netlink.ParseAddr(prefix)
		i.NS.must("parse "+prefix, err)
		if held {
			err = netlink.AddrReplace(i.link(), addr)
		} else if err = netlink.AddrDel(i.link(), addr); errors.Is(err, unix.EADDRNOTAVAIL) {
			err = nil
		}
		i.NS.must("hold "+prefix, err)
	})
}

// Lookup finds an interface of the namespace.
func (n *NS) Lookup(name string) Iface { return n.up(name) }

// ForgetNeighbour removes a neighbour entry, so that the next packet asks anew.
func (i Iface) ForgetNeighbour(address string) {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		err := netlink.NeighDel(&netlink.Neigh{LinkIndex: i.Index, IP: net.ParseIP(address)})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			i.NS.must("forget neighbour "+address, err)
		}
	})
}
