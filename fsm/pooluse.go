package fsm

import (
	"net/netip"
	"slices"
)

// PoolCounts are how many addresses a pool has, and what has become of them. Size is
// Used, Reserved and Free together.
type PoolCounts struct {
	Size     uint64 `json:"size"`     // addresses it may hand out, at most 2^53-1
	Used     uint64 `json:"used"`     // VIPs, also those it did not hand out, and addresses of nodes, endpoints and BGP peers
	Reserved uint64 `json:"reserved"` // kept back, and not used
	Free     uint64 `json:"free"`
}

// PoolUse is what has become of a pool's addresses, one by one. Allocations and
// Others together are those in use.
type PoolUse struct {
	PoolCounts
	Allocations []Allocation `json:"allocations"` // the VIPs it handed out, sorted by address
	Others      []Occupied   `json:"others"`      // what it did not hand out, sorted by address
}

// Allocation is one address that a pool handed out.
type Allocation struct {
	Address  netip.Addr `json:"address"`
	Share    string     `json:"share,omitempty"` // see AutoVIP
	Services []string   `json:"services"`        // who is on it, sorted
}

// Occupied is an address that a pool may hand out and that is somebody's already.
type Occupied struct {
	Address  netip.Addr `json:"address"`
	What     string     `json:"what"`     // in words, like "a virtual address" or "an endpoint of service web"
	Services []string   `json:"services"` // who is on it, sorted, if it is a VIP
}

// What addresses are that are no VIPs, in words.
const (
	ofNode     = "the address of node "
	ofPeer     = "an end of the session with BGP peer "
	ofEndpoint = "an endpoint of service "
)

// PoolCounts counts the addresses of all pools, in the order of Pools. It walks the
// state once, however many pools there are.
func (s *State) PoolCounts() []PoolCounts {
	var all []AddressRange
	for _, r := range s.pools.rows {
		all = append(all, r.val.handsOut()...)
	}
	if len(all) == 0 {
		return []PoolCounts{}
	}
	slices.SortFunc(all, compareRanges)
	used := s.occupied(all)
	out := make([]PoolCounts, 0, s.pools.len())
	for _, r := range s.pools.rows {
		out = append(out, r.val.counts(used))
	}
	return out
}

// counts needs the sorted addresses that are in use.
func (p Pool) counts(used []netip.Addr) PoolCounts {
	c := PoolCounts{Size: p.size()}
	for _, r := range p.handsOut() {
		first, _ := slices.BinarySearchFunc(used, r.First, netip.Addr.Compare)
		last, there := slices.BinarySearchFunc(used, r.Last, netip.Addr.Compare)
		if there {
			last++
		}
		c.Used += uint64(last - first) //nolint:gosec // last is not before first
	}
	for _, r := range p.Reservations {
		if _, is := slices.BinarySearchFunc(used, r.Address, netip.Addr.Compare); !is {
			c.Reserved++
		}
	}
	c.Free = c.Size - c.Used - c.Reserved
	return c
}

// PoolUse tells what has become of the addresses of a pool; nothing is used of
// one that does not exist.
func (s *State) PoolUse(name string) PoolUse {
	use := PoolUse{Allocations: []Allocation{}, Others: []Occupied{}}
	p := s.pools.get(name)
	if p == nil {
		return use
	}
	ranges := p.handsOut()
	use.PoolCounts = p.counts(s.occupied(ranges))
	for _, r := range s.vips.rows {
		services := append([]string{}, s.servicesOn(r.key)...)
		switch {
		case r.val.Pool == name:
			use.Allocations = append(use.Allocations, Allocation{Address: r.key, Share: r.val.Share, Services: services})
		case inRanges(ranges, r.key):
			use.Others = append(use.Others, Occupied{r.key, "a virtual address made by hand", services})
		}
	}
	s.eachOther(func(a netip.Addr, what, whose string) {
		if inRanges(ranges, a) {
			use.Others = append(use.Others, Occupied{a, what + whose, []string{}})
		}
	})
	slices.SortStableFunc(use.Others, func(a, b Occupied) int { return a.Address.Compare(b.Address) })
	use.Others = slices.CompactFunc(use.Others, func(a, b Occupied) bool { return a.Address == b.Address })
	return use
}

// occupied are the addresses within sorted ranges that are somebody's, sorted,
// each once.
func (s *State) occupied(ranges []AddressRange) []netip.Addr {
	out := s.others(ranges)
	for _, r := range s.vips.rows {
		if inRanges(ranges, r.key) {
			out = append(out, r.key)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// others are the addresses within sorted ranges that are somebody's and no VIPs, in
// no order and some of them twice.
func (s *State) others(ranges []AddressRange) []netip.Addr {
	var out []netip.Addr
	s.eachOther(func(a netip.Addr, _, _ string) {
		if inRanges(ranges, a) {
			out = append(out, a)
		}
	})
	return out
}

// eachOther calls note with every address that is somebody's and no VIP: those of
// nodes, BGP sessions and endpoints, some of them several times, and with what it is
// and whose. An address that is not given is the zero Addr.
func (s *State) eachOther(note func(a netip.Addr, what, whose string)) {
	for _, r := range s.nodes.rows {
		if own, ok := sockets(*r.val); ok {
			note(own[0].Addr(), ofNode, string(r.key))
		}
	}
	for _, r := range s.bgpPeers.rows {
		peer := r.key.addr.String()
		note(r.key.addr, ofPeer, peer)
		note(r.val.Source, ofPeer, peer)
	}
	for _, r := range s.services.rows {
		for _, e := range r.val.Endpoints {
			note(e.Address.Addr(), ofEndpoint, r.key)
		}
	}
}
