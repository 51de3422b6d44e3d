package host

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// routeProtocol marks a route as Pontoon's (RTA protocol, linux/rtnetlink.h). The
	// number is nobody else's there or in iproute2's rt_protos; `ip route` shows it
	// as "proto 80".
	routeProtocol = 80
	// routeMetric is what routing daemons give external routes, too. A route that an
	// operator set without a metric (IPv4) wins over it, the default route of a DHCP
	// client or of a router's advertisement does not.
	routeMetric = 20
)

// ErrForeignRoute is wrapped by the errors of SyncRoutes about a prefix for which
// somebody else has set a route with the same metric.
var ErrForeignRoute = errors.New("a route of somebody else's with the same metric is there")

// Route is one route of the kernel's main table.
type Route struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr // neighbours; several share the traffic. Of an IPv4 prefix they may be IPv6 addresses (RFC 8950)
}

// SyncRoutes makes the main table hold exactly want among the routes that are
// Pontoon's, which is those with its protocol number, and reports what it changed
// (a route that got other next hops is among the added). Routes stay when the
// process ends; a later one recognises them.
//
// keep leaves routes that are there and not wanted, for a caller that does not know
// yet all that will be.
//
// Errors are joined; each concerns one route, and everything else has been done. An
// error about the listing itself means nothing was done. A route whose next hop is
// on no link cannot be added until it is.
func (h *Host) SyncRoutes(want []Route, keep bool) (added, removed []netip.Prefix, err error) {
	h.routes.Lock()
	defer h.routes.Unlock()
	have, err := h.ownRoutes()
	if err != nil {
		return nil, nil, err
	}
	remove, add, change := planRoutes(have, want)
	if keep {
		remove = nil
	}
	var errs []error
	for _, r := range remove {
		if err := h.links.RouteDel(r.message()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", r.Prefix, err))
			continue
		}
		removed = append(removed, r.Prefix)
	}
	for _, todo := range []struct {
		routes []Route
		do     func(*netlink.Route) error
	}{{change, h.links.RouteReplace}, {add, h.links.RouteAdd}} {
		for _, r := range todo.routes {
			if err := todo.do(r.message()); err != nil {
				errs = append(errs, r.refused(err))
				continue
			}
			added = append(added, r.Prefix)
		}
	}
	return added, removed, errors.Join(errs...)
}

// planRoutes compares what is there with what is wanted. It is pure, and in the
// order of prefixes. Only a route that is Pontoon's already is replaced: to replace
// one that is not there could hit somebody else's.
func planRoutes(have, want []Route) (remove, add, change []Route) {
	there := make(map[netip.Prefix]Route, len(have))
	for _, r := range have {
		there[r.Prefix] = r
	}
	wanted := make(map[netip.Prefix]bool, len(want))
	for _, r := range want {
		r = r.canonical()
		if wanted[r.Prefix] || len(r.NextHops) == 0 {
			continue
		}
		wanted[r.Prefix] = true
		switch old, known := there[r.Prefix]; {
		case !known:
			add = append(add, r)
		case !slices.Equal(old.NextHops, r.NextHops):
			change = append(change, r)
		}
	}
	for _, r := range have {
		if !wanted[r.Prefix] {
			remove = append(remove, r)
		}
	}
	for _, list := range [][]Route{remove, add, change} {
		slices.SortFunc(list, func(a, b Route) int {
			return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
		})
	}
	return remove, add, change
}

// canonical has one form for all ways to write a route.
func (r Route) canonical() Route {
	hops := make([]netip.Addr, 0, len(r.NextHops))
	for _, a := range r.NextHops {
		hops = append(hops, a.Unmap().WithZone(""))
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	return Route{Prefix: r.Prefix.Masked(), NextHops: slices.Compact(hops)}
}

// refused words what the kernel says to a route.
func (r Route) refused(err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("add route to %s: %w (metric %d): remove it there, or do not import this prefix", r.Prefix, ErrForeignRoute, routeMetric)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("add route to %s by %v: %w: the next hop is in no subnet of this machine", r.Prefix, r.NextHops, err)
	}
	return fmt.Errorf("add route to %s by %v: %w", r.Prefix, r.NextHops, err)
}

// message is the route as the kernel is told of it.
func (r Route) message() *netlink.Route {
	out := &netlink.Route{
		Dst:      &net.IPNet{IP: r.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(r.Prefix.Bits(), r.Prefix.Addr().BitLen())},
		Protocol: routeProtocol, Priority: routeMetric, Table: unix.RT_TABLE_MAIN,
	}
	if len(r.NextHops) == 1 {
		out.Gw, out.Via = r.by(r.NextHops[0])
		return out
	}
	for _, hop := range r.NextHops {
		one := &netlink.NexthopInfo{}
		one.Gw, one.Via = r.by(hop)
		out.MultiPath = append(out.MultiPath, one)
	}
	return out
}

// by is a next hop as a gateway of the prefix's family, or of the other one.
func (r Route) by(hop netip.Addr) (net.IP, netlink.Destination) {
	if hop.Is4() == r.Prefix.Addr().Is4() {
		return hop.AsSlice(), nil
	}
	return nil, &netlink.Via{AddrFamily: unix.AF_INET6, Addr: hop.AsSlice()}
}

// ownRoutes lists the routes with Pontoon's protocol number.
func (h *Host) ownRoutes() ([]Route, error) {
	var out []Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := h.listRoutes(family)
		if err != nil {
			return nil, err
		}
		for i := range list {
			if r, ok := parseRoute(&list[i], family); ok {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func (h *Host) listRoutes(family int) ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
	for try := 1; ; try++ {
		list, err := h.links.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries {
			continue // something changed under the dump: it may lack an entry
		}
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil // a kernel without the family has no routes of it
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		return list, nil
	}
}

// parseRoute reads one of ours; false for one with a metric we never give.
func parseRoute(m *netlink.Route, family int) (Route, bool) {
	r := Route{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	if family == unix.AF_INET6 {
		r.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if m.Dst != nil {
		addr, ok := netip.AddrFromSlice(m.Dst.IP)
		bits, _ := m.Dst.Mask.Size()
		if family == unix.AF_INET {
			addr = addr.Unmap()
		}
		if !ok {
			return r, false
		}
		r.Prefix = netip.PrefixFrom(addr, bits)
	}
	add := func(gw net.IP, via netlink.Destination) {
		if v, ok := via.(*netlink.Via); ok && v != nil {
			gw = v.Addr
		}
		if a, ok := netip.AddrFromSlice(gw); ok {
			r.NextHops = append(r.NextHops, a)
		}
	}
	add(m.Gw, m.Via)
	for _, hop := range m.MultiPath {
		add(hop.Gw, hop.Via)
	}
	return r.canonical(), m.Priority == routeMetric
}
