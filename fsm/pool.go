package fsm

import (
	"net/netip"
	"slices"
)

// Pool is a set of addresses of which services without a VIP of their own get
// one, see AutoVIP. All its addresses are of one IP family; pools have no
// address in common. Apply fills in the defaults and sorts the lists.
type Pool struct {
	Name   string         `json:"name"`
	CIDRs  []netip.Prefix `json:"cidrs,omitempty"`
	Ranges []AddressRange `json:"ranges,omitempty"`
	// AllAddresses lets the first and the last address of the CIDRs be handed out
	// too. Without it the network and the broadcast address of an IPv4 prefix
	// shorter than /31 are kept back, and of an IPv6 prefix shorter than /127 the
	// first, which is the anycast address of the subnet's routers (RFC 4291, 2.6.1).
	AllAddresses bool `json:"all_addresses,omitempty"`

	// What the VIPs made from it are like; those there are already do not change
	// with it.
	Instance  string       `json:"instance" required:"false"` // default "default"
	Announce  AnnounceMode `json:"announce" required:"false"` // default "l2"; "bgp" in an instance of kind ecmp
	Interface string       `json:"interface,omitempty"`       // default: the one whose subnet contains the address

	// Default marks the pool that is meant where none is named. One pool has it at
	// most: setting it here takes it off another.
	Default bool `json:"default,omitempty"`
	// Reservations are addresses that are kept back, sorted by address.
	Reservations []Reservation `json:"reservations,omitempty"`
}

// Reservation keeps an address of a pool back: for one service, or for nobody.
type Reservation struct {
	Address netip.Addr `json:"address"`
	Service string     `json:"service,omitempty"` // who gets it when it asks for an address of the pool; "" is nobody
}

// AutoVIP asks for a VIP from a pool: the lowest address that is free, made a VIP
// with the service and given back when no service is on it any more.
type AutoVIP struct {
	Pool string `json:"pool,omitempty"` // "": the only pool, or the one marked as default
	// Share names an address that several services are to be on: the first that
	// asks gets a new one, the others get the same.
	Share string `json:"share,omitempty"`
}

// String is what the API and the command line call it: "auto" or "auto:POOL".
func (a AutoVIP) String() string {
	if a.Pool == "" {
		return "auto"
	}
	return "auto:" + a.Pool
}

// The bounds of pools.
const (
	MaxPools        = 256
	MaxPoolParts    = 64 // CIDRs and ranges of one pool
	MaxReservations = 4096
)

// parts are all ranges of the pool, whole, in no order.
func (p Pool) parts() []AddressRange {
	out := make([]AddressRange, 0, len(p.CIDRs)+len(p.Ranges))
	for _, c := range p.CIDRs {
		out = append(out, rangeOf(c))
	}
	return append(out, p.Ranges...)
}

// handsOut are the ranges of what may be given to services, reservations apart,
// in order. They do not overlap, since the parts of a pool do not.
func (p Pool) handsOut() []AddressRange {
	out := make([]AddressRange, 0, len(p.CIDRs)+len(p.Ranges))
	for _, c := range p.CIDRs {
		r := rangeOf(c)
		if !p.AllAddresses && c.Addr().BitLen()-c.Bits() > 1 {
			r.First = r.First.Next()
			if c.Addr().Is4() {
				r.Last = r.Last.Prev()
			}
		}
		out = append(out, r)
	}
	out = append(out, p.Ranges...)
	slices.SortFunc(out, compareRanges)
	return out
}

// size is how many addresses the pool may hand out, reserved ones included, at
// most 2^53-1.
func (p Pool) size() uint64 {
	n := uint64(0)
	for _, r := range p.handsOut() {
		n = min(n+r.size(), maxRangeSize)
	}
	return n
}

// Covers says whether a prefix lies within the pool's addresses, those it does not
// hand out included.
func (p Pool) Covers(prefix netip.Prefix) bool {
	if !prefix.IsValid() {
		return false
	}
	r := rangeOf(prefix)
	return slices.ContainsFunc(p.parts(), func(part AddressRange) bool { return part.Contains(r.First) && part.Contains(r.Last) })
}

// Grows says whether a pool may have addresses that another has not. It takes parts
// of the other that join for apart.
func (p Pool) Grows(old Pool) bool {
	had := old.parts()
	return slices.ContainsFunc(p.parts(), func(r AddressRange) bool {
		return !slices.ContainsFunc(had, func(o AddressRange) bool { return o.Contains(r.First) && o.Contains(r.Last) })
	})
}

// reservation finds what an address is kept back for.
func (p Pool) reservation(a netip.Addr) (Reservation, bool) {
	i, ok := p.findReservation(a)
	if !ok {
		return Reservation{}, false
	}
	return p.Reservations[i], true
}

// findReservation is where the reservation of an address is, or would be.
func (p Pool) findReservation(a netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(p.Reservations, a, func(r Reservation, a netip.Addr) int { return r.Address.Compare(a) })
}

// Pools returns the pools, sorted by name. Their lists are shared with the
// state: read only.
func (s *State) Pools() []Pool { return s.pools.values() }

// Pool returns the pool of that name. Its lists are shared with the state: read
// only.
func (s *State) Pool(name string) (Pool, bool) { return valueOf(s.pools.get(name)) }

// occupant says in words whose address it is, VIPs apart; "" if nobody has it.
func (s *State) occupant(a netip.Addr) string {
	for _, r := range s.nodes.rows {
		if own, ok := sockets(*r.val); ok && own[0].Addr() == a {
			return ofNode + string(r.key)
		}
	}
	for _, p := range s.bgpPeers.rows {
		if p.key.addr == a || p.val.Source == a {
			return ofPeer + p.key.addr.String()
		}
	}
	for _, r := range s.services.rows {
		if hasEndpointAt(r.val.Endpoints, a) {
			return ofEndpoint + r.key
		}
	}
	return ""
}

// poolAt finds the pool that may hand out an address.
func (s *State) poolAt(a netip.Addr) *Pool {
	for _, r := range s.pools.rows {
		if inRanges(r.val.handsOut(), a) {
			return r.val
		}
	}
	return nil
}
