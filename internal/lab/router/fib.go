package router

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
)

// protocol marks the router's routes in the kernel (rtnetlink(7), rtm_protocol): the number
// iproute2 knows as "bgp".
const protocol = 186

// fib is the router's part of the kernel's main table, in the namespace of this process. It
// remembers what it has put there and is not safe for concurrent use.
type fib struct {
	nl  *netlink.Handle
	has map[netip.Prefix][]netip.Addr
}

func newFIB() (*fib, error) {
	nl, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &fib{nl: nl, has: map[netip.Prefix][]netip.Addr{}}, nil
}

func (f *fib) close() { f.nl.Close() }

// set makes the kernel's routes the wanted ones: next hops of each prefix. What fails stays wanted by
// the next call.
func (f *fib) set(want map[netip.Prefix][]netip.Addr) error {
	var errs []error
	for p := range f.has {
		if len(want[p]) > 0 {
			continue
		}
		if err := f.nl.RouteDel(route(p, nil)); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route to %s: %w", p, err))
			continue
		}
		delete(f.has, p)
	}
	for p, hops := range want {
		if len(hops) == 0 || slices.Equal(f.has[p], hops) {
			continue
		}
		if err := f.nl.RouteReplace(route(p, hops)); err != nil {
			errs = append(errs, fmt.Errorf("set route to %s by %s: %w", p, hops, err))
			continue
		}
		f.has[p] = slices.Clone(hops)
	}
	return errors.Join(errs...)
}

func route(p netip.Prefix, hops []netip.Addr) *netlink.Route {
	r := &netlink.Route{
		Dst:      &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Protocol: protocol,
	}
	if len(hops) == 1 {
		r.Gw = hops[0].AsSlice()
		return r
	}
	for _, h := range hops {
		r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: h.AsSlice()})
	}
	return r
}
