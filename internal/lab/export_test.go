package lab

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addAddress puts an address on a host, as a daemon would.
func addAddress(ns, iface string, p netip.Prefix) error {
	nl, err := nlHandle(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(iface)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return nl.AddrAdd(link, addr)
}

// addRoute sends what is for a prefix by a router.
func addRoute(ns string, to netip.Prefix, by netip.Addr) error {
	nl, err := nlHandle(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	return nl.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: by.AsSlice()})
}
