package host

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Use is something that this machine uses addresses for, and not Pontoon.
type Use struct {
	Prefix netip.Prefix // one address, or where a route leads
	What   string       // in words, like "an address of eth1" or "routed to 192.0.2.1"
}

// Uses lists the addresses of the machine and the routes of its main table that
// lead over another machine, without those that Pontoon has set and without default
// routes. The subnets of links are not among them: virtual addresses lie in such.
func (h *Host) Uses() ([]Use, error) {
	names, err := h.linkNames()
	if err != nil {
		return nil, err
	}
	addrs, err := h.dumpAddresses(names)
	if err != nil {
		return nil, err
	}
	var out []Use
	for _, a := range addrs {
		if !a.marked() && !a.addr.IsLoopback() && !a.addr.IsLinkLocalUnicast() {
			out = append(out, Use{netip.PrefixFrom(a.addr, a.addr.BitLen()), "an address of " + a.link})
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.mainTable(family)
		if err != nil {
			return nil, err
		}
		for i := range routes {
			r, _ := parseRoute(&routes[i], family) // the metric is for those of Pontoon
			if routes[i].Protocol != routeProtocol && r.Prefix.Bits() > 0 && len(r.NextHops) > 0 {
				out = append(out, Use{r.Prefix, "routed to " + r.NextHops[0].String()})
			}
		}
	}
	return out, nil
}

// mainTable lists all routes of a family in the main table.
func (h *Host) mainTable(family int) ([]netlink.Route, error) {
	for try := 1; ; try++ {
		list, err := h.links.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		switch {
		case errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries:
		case errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil // a kernel without the family has no routes of it
		case err != nil:
			return nil, fmt.Errorf("list routes: %w", err)
		default:
			return list, nil
		}
	}
}
