package bpftest

import (
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddressSix adds an IPv6 address such as fd00::1/64, usable at once.
func (i Iface) AddressSix(prefix string) {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		addr, err := netlink.ParseAddr(prefix)
		i.NS.must("parse "+prefix, err)
		addr.Flags = unix.IFA_F_NODAD
		i.NS.must("add "+prefix, netlink.AddrAdd(i.link(), addr))
	})
}

// DefaultRouteSix sends all other IPv6 by the gateway.
func (n *NS) DefaultRouteSix(gateway string) {
	n.tb.Helper()
	n.Do(func() {
		_, everything, err := net.ParseCIDR("::/0")
		n.must("parse default route", err)
		n.must("add default route", netlink.RouteAdd(&netlink.Route{Dst: everything, Gw: net.ParseIP(gateway)}))
	})
}

// SetMTU sets the MTU of the interface.
func (i Iface) SetMTU(mtu int) {
	i.NS.tb.Helper()
	i.NS.Do(func() { i.NS.must("set mtu of "+i.Name, netlink.LinkSetMTU(i.link(), mtu)) })
}
