package lab

import (
	"net/netip"

	"github.com/vishvananda/netlink"
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
	return nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p)})
}
