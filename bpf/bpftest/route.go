package bpftest

import (
	"net"

	"github.com/vishvananda/netlink"
)

// Route leads to prefix by the gateway, or over the interface itself when there is none. mtu 0 is
// that of the interface.
func (i Iface) Route(prefix, gateway string, mtu int) {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		_, to, err := net.ParseCIDR(prefix)
		i.NS.must("parse "+prefix, err)
		route := &netlink.Route{LinkIndex: i.Index, Dst: to, MTU: mtu}
		if gateway != "" {
			route.Gw = net.ParseIP(gateway)
		}
		i.NS.must("add route to "+prefix, netlink.RouteReplace(route))
	})
}
