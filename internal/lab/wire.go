package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridgeName is the bridge inside each segment's namespace.
const bridgeName = "br0"

// segment is one Ethernet: a bridge in a namespace of its own.
type segment struct {
	name   string
	ns     string
	nl     *netlink.Handle // open while the segment lives: link failures must be quick
	bridge int
}

// newSegment makes the namespace and the bridge in it.
func newSegment(name, ns string) (*segment, error) {
	if err := createNS(ns, false); err != nil {
		return nil, err
	}
	nl, err := nlHandle(ns)
	if err != nil {
		return nil, err
	}
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &off}
	br.Name = bridgeName
	if err := nl.LinkAdd(br); err != nil {
		nl.Close()
		return nil, fmt.Errorf("segment %s: add bridge: %w", name, err)
	}
	if err := nl.LinkSetUp(br); err != nil {
		nl.Close()
		return nil, fmt.Errorf("segment %s: set bridge up: %w", name, err)
	}
	return &segment{name: name, ns: ns, nl: nl, bridge: br.Attrs().Index}, nil
}

// plug makes the cable from the segment to a host's interface. The host's
// end gets its address when the host is configured.
func (s *segment) plug(host string, hostNS netns.NsHandle, p portSpec) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.peerName(host)
	attrs.MasterIndex = s.bridge
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: p.iface, PeerHardwareAddr: p.mac,
		PeerNamespace: netlink.NsFd(int(hostNS)),
	}
	if err := s.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("segment %s: plug %s in: %w", s.name, attrs.Name, err)
	}
	return s.setPort(attrs.Name, true)
}

// setPort raises or drops the carrier that the host at the named port sees.
func (s *segment) setPort(port string, up bool) error {
	link, err := s.nl.LinkByName(port)
	if err != nil {
		return fmt.Errorf("segment %s: find port %s: %w", s.name, port, err)
	}
	set, word := s.nl.LinkSetDown, "down"
	if up {
		set, word = s.nl.LinkSetUp, "up"
	}
	if err := set(link); err != nil {
		return fmt.Errorf("segment %s: set port %s %s: %w", s.name, port, word, err)
	}
	return nil
}

// unplug removes the cable; both ends go. A port that is not there is no
// error.
func (s *segment) unplug(port string) error {
	link, err := s.nl.LinkByName(port)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("segment %s: find port %s: %w", s.name, port, err)
	}
	if err := s.nl.LinkDel(link); err != nil {
		return fmt.Errorf("segment %s: unplug %s: %w", s.name, port, err)
	}
	return nil
}

// configure gives a freshly plugged host its addresses and routes.
func (h hostSpec) configure(ns string) error {
	if err := h.settle(ns); err != nil {
		return err
	}
	nl, err := nlHandle(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	for _, p := range h.ports {
		link, err := nl.LinkByName(p.iface)
		if err != nil {
			return fmt.Errorf("host %s: find %s: %w", h.name, p.iface, err)
		}
		if err := nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p.address)}); err != nil {
			return fmt.Errorf("host %s: add %s to %s: %w", h.name, p.address, p.iface, err)
		}
		if err := nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("host %s: set %s up: %w", h.name, p.iface, err)
		}
		if !haveIPv6() {
			continue
		}
		// Without duplicate detection it is usable at once, as the IPv4 one is.
		addr := &netlink.Addr{IPNet: ipNet(p.address6), Flags: unix.IFA_F_NODAD}
		if err := nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("host %s: add %s to %s: %w", h.name, p.address6, p.iface, err)
		}
	}
	return h.routes(nl)
}

// routes gives the host its default routes.
func (h hostSpec) routes(nl *netlink.Handle) error {
	for _, gws := range [][]netip.Addr{h.gateway, h.gateway6} {
		if len(gws) == 0 || (gws[0].Is6() && !haveIPv6()) {
			continue
		}
		route := &netlink.Route{Gw: gws[0].AsSlice()}
		if len(gws) > 1 {
			route.Gw, route.Dst = nil, ipNet(netip.PrefixFrom(familyOf(gws[0]).Unspecified(), 0))
			for _, gw := range gws {
				route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: gw.AsSlice()})
			}
		}
		if err := nl.RouteAdd(route); err != nil {
			return fmt.Errorf("host %s: add default route by %s: %w", h.name, gws, err)
		}
	}
	return nil
}

// ipNet translates for the netlink library.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
