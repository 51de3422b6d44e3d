package announce

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

const (
	maxPrepend = 31 // as many bits as the export policy has statements
	// markAS is the global administrator of large communities of our own that tell the
	// export policy how often to prepend. Nobody else may use it (RFC 8092, section 5),
	// and it never leaves this node.
	markAS = 1<<32 - 1
	// maxCommunities bounds what is attached to one route, so that it fits a message.
	maxCommunities = 100
)

// routeSet is wanted or announced routes, by prefix.
type routeSet map[netip.Prefix]Route

// newRouteSet checks routes and puts them by prefix. All mistakes are told at once.
func newRouteSet(routes []Route) (routeSet, error) {
	set := make(routeSet, len(routes))
	var errs []error
	for _, r := range routes {
		if err := r.validate(); err != nil {
			errs = append(errs, fmt.Errorf("route %v: %w", r.Prefix, err))
			continue
		}
		if other, twice := set[r.Prefix]; twice && !other.equal(r) {
			errs = append(errs, fmt.Errorf("route %v: it stands there twice, with different attributes", r.Prefix))
			continue
		}
		r.Communities = slices.Clone(r.Communities)
		r.LargeCommunities = slices.Clone(r.LargeCommunities)
		set[r.Prefix] = r
	}
	return set, errors.Join(errs...)
}

func (r Route) validate() error {
	switch {
	case !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() || r.Prefix != r.Prefix.Masked():
		return errors.New("not a prefix, or bits beyond its length are set")
	case r.NextHop.IsValid() && (r.NextHop.Is4() != r.Prefix.Addr().Is4() || r.NextHop.Is4In6()):
		return fmt.Errorf("next hop %v is of another family", r.NextHop)
	case r.NextHop.IsValid() && (r.NextHop.IsUnspecified() || r.NextHop.IsMulticast() || r.NextHop.Zone() != ""):
		return fmt.Errorf("%v is no next hop", r.NextHop)
	case r.Prepend > maxPrepend:
		return fmt.Errorf("the AS cannot be prepended more than %d times", maxPrepend)
	case len(r.Communities) > maxCommunities || len(r.LargeCommunities) > maxCommunities:
		return fmt.Errorf("it has more than %d communities", maxCommunities)
	}
	for _, c := range r.LargeCommunities {
		if c[0] == markAS {
			return fmt.Errorf("large community %d:%d:%d is reserved (RFC 8092, section 5)", c[0], c[1], c[2])
		}
	}
	return nil
}

func (r Route) equal(o Route) bool {
	return r.Prefix == o.Prefix && r.NextHop == o.NextHop && r.MED == o.MED && r.LocalPref == o.LocalPref &&
		r.Prepend == o.Prepend && slices.Equal(r.Communities, o.Communities) &&
		slices.Equal(r.LargeCommunities, o.LargeCommunities)
}

// diff is what takes have to want: routes to announce, new ones and such with
// other attributes, and prefixes to withdraw, in the order of prefixes.
func (want routeSet) diff(have routeSet) (announce []Route, withdraw []netip.Prefix) {
	for p, r := range want {
		if h, ok := have[p]; !ok || !h.equal(r) {
			announce = append(announce, r)
		}
	}
	for p := range have {
		if _, ok := want[p]; !ok {
			withdraw = append(withdraw, p)
		}
	}
	slices.SortFunc(announce, func(a, b Route) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(withdraw, comparePrefixes)
	return announce, withdraw
}

// unsure is the same prefixes with attributes that differ from any: what is wanted
// of them is announced again, and the rest is withdrawn.
func (s routeSet) unsure() routeSet {
	out := make(routeSet, len(s))
	for p := range s {
		out[p] = Route{}
	}
	return out
}

// count is how many routes a neighbour with these families sees.
func (s routeSet) count(v4, v6 bool) int {
	n := 0
	for p := range s {
		if p.Addr().Is4() && v4 || p.Addr().Is6() && v6 {
			n++
		}
	}
	return n
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
