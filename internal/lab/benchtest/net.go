package benchtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"pontoon/internal/lab"
)

// The ports every contender serves and forwards to without changing them, so
// that plain routing can be among them.
const (
	ConnPort = 8080 // TCP: answers one byte with one byte
	BulkPort = 5201 // TCP: swallows
	UDPPort  = 7007 // UDP: answers, until a counter is put before it
)

// Addresses of one site.
const (
	clientAddrs   = 16 // addresses connections come from
	endpointAddrs = 8  // addresses of the server that are balanced to
	clientFirst   = 101
	endpointFirst = 21
	vipFirst      = 200
)

// Site is the place of one contender: a machine with a cable to the client and
// one to the server.
type Site struct {
	// Node is the machine. Its daemon does not run yet.
	Node *lab.Node
	// Front and Back are the machine's interfaces to the client and to the
	// server.
	Front, Back string

	index   int
	closers []io.Closer // what is to be closed with the lab
}

// keep closes what a contender holds open in this process at the end.
func (s *Site) keep(c ...io.Closer) { s.closers = append(s.closers, c...) }

func (s *Site) close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func siteAddr(leg, index, last int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(leg), byte(index), byte(last)})
}

const (
	frontLeg = 80
	backLeg  = 81
)

// VIP is the n-th address of the client's subnet that nobody has.
func (s *Site) VIP(n int) netip.Addr { return siteAddr(frontLeg, s.index, vipFirst+n) }

// Endpoints are the server's addresses behind this machine.
func (s *Site) Endpoints() []netip.Addr { return addrs(backLeg, s.index, endpointFirst, endpointAddrs) }

// FrontPrefix is the machine's address on its front interface.
func (s *Site) FrontPrefix() netip.Prefix {
	return netip.PrefixFrom(siteAddr(frontLeg, s.index, 1), 24)
}

// BackPrefix is the machine's address on its back interface.
func (s *Site) BackPrefix() netip.Prefix { return netip.PrefixFrom(siteAddr(backLeg, s.index, 1), 24) }

// clients are the addresses the client uses towards this machine.
func (s *Site) clients() []netip.Addr { return addrs(frontLeg, s.index, clientFirst, clientAddrs) }

// clientIface and serverIface are the far ends of the cables.
func (s *Site) clientIface() string { return fmt.Sprintf("f%d", s.index) }
func (s *Site) serverIface() string { return fmt.Sprintf("b%d", s.index) }

func addrs(leg, index, first, count int) []netip.Addr {
	out := make([]netip.Addr, count)
	for i := range out {
		out[i] = siteAddr(leg, index, first+i)
	}
	return out
}

// cable joins two hosts.
type cable struct {
	a, b           *lab.Host
	aIface, bIface string
	aAddrs, bAddrs []netip.Prefix
	xdp            bool // see setOffloads
}

// directCable joins client and server without a machine; index is its subnet's
// number.
func directCable(client, server *lab.Host, index int, iface string, xdp bool) cable {
	return cable{
		a: client, aIface: iface, aAddrs: prefixes(addrs(frontLeg, index, clientFirst, clientAddrs)),
		b: server, bIface: iface, bAddrs: prefixes(addrs(frontLeg, index, endpointFirst, endpointAddrs)), xdp: xdp,
	}
}

func prefixes(in []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(in))
	for i, a := range in {
		out[i] = netip.PrefixFrom(a, 24)
	}
	return out
}

// lay makes the cable with its addresses and offloads, and sets it up.
func (c cable) lay() error {
	far, err := netns.GetFromName(c.b.Namespace())
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", c.b.Namespace(), err)
	}
	defer far.Close()
	err = c.a.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.aIface
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: c.bIface, PeerNamespace: netlink.NsFd(int(far))}); err != nil {
			return fmt.Errorf("add cable %s: %w", c.aIface, err)
		}
		return bringUp(c.aIface, c.aAddrs)
	})
	if err != nil {
		return fmt.Errorf("on %s: %w", c.a.Name(), err)
	}
	if err := c.b.Do(func() error { return bringUp(c.bIface, c.bAddrs) }); err != nil {
		return fmt.Errorf("on %s: %w", c.b.Name(), err)
	}
	// Both ends must be up: an end that takes receive offload on while it is
	// down does not tell the other that frames may be redirected to it.
	return errors.Join(
		c.a.Do(func() error { return setOffloads(c.aIface, c.xdp) }),
		c.b.Do(func() error { return setOffloads(c.bIface, c.xdp) }))
}

// bringUp configures an interface of the thread's namespace.
func bringUp(iface string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find %s: %w", iface, err)
	}
	for _, p := range addresses {
		n := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: n}); err != nil {
			return fmt.Errorf("add %s to %s: %w", p, iface, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", iface, err)
	}
	return nil
}

// route sends a site's subnet through a gateway, in the thread's namespace.
func route(to netip.Prefix, via netip.Addr) error {
	to = to.Masked()
	n := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}
	if err := netlink.RouteAdd(&netlink.Route{Dst: n, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add route to %s by %s: %w", to, via, err)
	}
	return nil
}

// wire joins the site's machine with the client and the server.
func (s *Site) wire(client, server *lab.Host, xdp bool) error {
	for _, c := range []cable{
		{
			a: client, aIface: s.clientIface(), aAddrs: prefixes(s.clients()),
			b: s.Node.Host, bIface: s.Front, bAddrs: []netip.Prefix{s.FrontPrefix()}, xdp: xdp,
		},
		{
			a: server, aIface: s.serverIface(), aAddrs: prefixes(s.Endpoints()),
			b: s.Node.Host, bIface: s.Back, bAddrs: []netip.Prefix{s.BackPrefix()}, xdp: xdp,
		},
	} {
		if err := c.lay(); err != nil {
			return err
		}
	}
	// Plain routing and dnat need both ways; the others do not mind them.
	return errors.Join(
		client.Do(func() error { return route(s.BackPrefix(), s.FrontPrefix().Addr()) }),
		server.Do(func() error { return route(s.FrontPrefix(), s.BackPrefix().Addr()) }),
	)
}

// sysctl writes a setting like net.ipv4.ip_forward on a host.
func sysctl(h *lab.Host, name, value string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	err := h.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set %s on %s: %w", name, h.Name(), err)
	}
	return nil
}
