package announce

import (
	"cmp"
	"net/netip"
	"slices"
)

// Values of ORIGIN (RFC 4271, section 5.1.1): the lower one is preferred.
const originIncomplete = 2

// received is one path as a neighbour told of it.
type received struct {
	RouteView
	origin   uint8
	pathLen  int // of the AS path; a set counts once (RFC 4271, section 9.1.2.2)
	external bool
	id       netip.Addr // the neighbour's router id
}

// learning is what follows from everything received.
type learning struct {
	learned  []Learned
	accepted map[netip.Addr]int // prefixes of each neighbour that the rules let in
	best     map[pathKey]bool   // which paths are in learned
	left     int                // prefixes over the limit
	views    []RouteView        // all paths, by neighbour and prefix
	received map[netip.Addr]int // prefixes of each neighbour, let in or not
}

type pathKey struct {
	peer   netip.Addr
	prefix netip.Prefix
}

// learn picks from all received paths what is let in: what an import rule wants,
// is none of our own routes, has an AS path without one of our own AS numbers (RFC
// 4271, section 9.1.2) and a next hop that can be one. Over the limit, the prefixes
// that come last in order are left out.
func learn(paths []received, cfg BGPConfig, own routeSet) learning {
	out := learning{accepted: map[netip.Addr]int{}, received: map[netip.Addr]int{}, best: map[pathKey]bool{}}
	ownAS := map[uint32]bool{cfg.AS: true}
	for _, p := range cfg.Peers {
		ownAS[p.LocalAS] = true
	}
	byPrefix := map[netip.Prefix][]received{}
	for _, p := range paths {
		out.received[p.Peer]++
		_, ours := own[p.Prefix]
		if ours || !wanted(cfg.Import, p.Prefix) || looped(p.ASPath, ownAS) || !usableNextHop(p) {
			continue
		}
		out.accepted[p.Peer]++
		byPrefix[p.Prefix] = append(byPrefix[p.Prefix], p)
	}
	for prefix, candidates := range byPrefix {
		l := Learned{Prefix: prefix}
		for _, p := range best(candidates, cfg.Multipath) {
			out.best[pathKey{p.Peer, prefix}] = true
			l.NextHops = append(l.NextHops, p.NextHop)
		}
		slices.SortFunc(l.NextHops, netip.Addr.Compare)
		l.NextHops = slices.Compact(l.NextHops)
		out.learned = append(out.learned, l)
	}
	slices.SortFunc(out.learned, func(a, b Learned) int { return comparePrefixes(a.Prefix, b.Prefix) })
	out.limit(int(cfg.MaxImport))
	out.views = make([]RouteView, len(paths))
	for i, p := range paths {
		p.Best = out.best[pathKey{p.Peer, p.Prefix}]
		out.views[i] = p.RouteView
	}
	sortViews(out.views)
	return out
}

// limit leaves out what is over the limit.
func (l *learning) limit(most int) {
	if len(l.learned) <= most {
		return
	}
	over := map[netip.Prefix]bool{}
	for _, r := range l.learned[most:] {
		over[r.Prefix] = true
	}
	for k := range l.best {
		if over[k.prefix] {
			delete(l.best, k)
		}
	}
	l.left = len(over)
	l.learned = l.learned[:most]
}

func sortViews(views []RouteView) {
	slices.SortFunc(views, func(a, b RouteView) int {
		return cmp.Or(a.Peer.Compare(b.Peer), comparePrefixes(a.Prefix, b.Prefix))
	})
}

// wanted reports whether a rule lets the prefix in.
func wanted(rules []ImportRule, p netip.Prefix) bool {
	return slices.ContainsFunc(rules, func(r ImportRule) bool {
		r = r.normal()
		return r.Prefix.Addr().Is4() == p.Addr().Is4() && r.Prefix.Contains(p.Addr()) &&
			p.Bits() >= int(r.MinLen) && p.Bits() <= int(r.MaxLen)
	})
}

// normal is the rule with both lengths set.
func (r ImportRule) normal() ImportRule {
	bits, most := uint8(max(r.Prefix.Bits(), 0)), uint8(r.Prefix.Addr().BitLen())
	switch {
	case r.MinLen == 0 && r.MaxLen == 0:
		r.MinLen, r.MaxLen = bits, bits
	case r.MaxLen == 0:
		r.MaxLen = most
	case r.MinLen == 0:
		r.MinLen = bits
	}
	return r
}

func looped(path []uint32, own map[uint32]bool) bool {
	return slices.ContainsFunc(path, func(as uint32) bool { return own[as] })
}

// usableNextHop refuses what cannot be the next hop of a route of the kernel. An
// IPv4 route may go by an IPv6 router (RFC 8950), and not the other way round.
func usableNextHop(p received) bool {
	n := p.NextHop
	return n.IsValid() && !n.IsUnspecified() && !n.IsMulticast() && (p.Prefix.Addr().Is4() || n.Is6())
}

// best is the paths to one prefix that win by RFC 4271, section 9.1.2.2, as far as
// it goes without an interior routing protocol: the higher local preference, the
// shorter AS path, the lower origin, the lower MED among those from the same
// neighbouring AS, external before internal. Of what is left, one is taken, that of
// the lowest router id and address, or with multi all.
func best(paths []received, multi bool) []received {
	paths = winners(paths, func(p received) int64 { return -int64(p.LocalPref) })
	paths = winners(paths, func(p received) int64 { return int64(p.pathLen) })
	paths = winners(paths, func(p received) int64 { return int64(p.origin) })
	paths = lowestMED(paths)
	paths = winners(paths, func(p received) int64 {
		if p.external {
			return 0
		}
		return 1
	})
	slices.SortFunc(paths, func(a, b received) int { return cmp.Or(a.id.Compare(b.id), a.Peer.Compare(b.Peer)) })
	if !multi {
		return paths[:1]
	}
	return paths
}

// winners keeps the paths of the lowest rank, in a slice of its own.
func winners(paths []received, rank func(received) int64) []received {
	least := rank(paths[0])
	for _, p := range paths[1:] {
		least = min(least, rank(p))
	}
	var out []received
	for _, p := range paths {
		if rank(p) == least {
			out = append(out, p)
		}
	}
	return out
}

// lowestMED keeps of each neighbouring AS the paths of the lowest MED: those of
// different ones cannot be compared.
func lowestMED(paths []received) []received {
	least := map[uint32]uint32{}
	for _, p := range paths {
		as := p.neighbourAS()
		if m, ok := least[as]; !ok || p.MED < m {
			least[as] = p.MED
		}
	}
	var out []received
	for _, p := range paths {
		if p.MED == least[p.neighbourAS()] {
			out = append(out, p)
		}
	}
	return out
}

// neighbourAS is the AS a path came from; 0 is our own.
func (r received) neighbourAS() uint32 {
	if len(r.ASPath) == 0 {
		return 0
	}
	return r.ASPath[0]
}
