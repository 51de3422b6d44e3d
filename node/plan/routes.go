package plan

import (
	"math"
	"net/netip"
	"slices"

	"pontoon/fsm"
)

// Loopback is the link that holds a VIP which reaches the network by BGP: every
// node that announces it has it, and none answers for it on a link.
const Loopback = "lo"

// gracefulShutdown asks a neighbour to prefer any other path (RFC 8326, 4.4: 65535:0).
const gracefulShutdown = 0xffff0000

// Attributes of a node's place in the succession. A router prefers the higher
// local preference (within one AS), then the lower MED.
const (
	firstMED       = 10
	firstLocalPref = 200
	stepLocalPref  = 10
	mostRanks      = 16 // from where on all places look the same: more than there can be nodes
)

// Route is one VIP that this machine is to announce by BGP, with the attributes
// that follow from its place.
type Route struct {
	Prefix           netip.Prefix // of one address
	NextHop          netip.Addr   // zero: this end of each session
	MED, LocalPref   uint32
	Prepend          uint8       // how often the own AS stands in the path beyond the first time
	Communities      []uint32    // RFC 1997; shared: read only
	LargeCommunities [][3]uint32 // RFC 8092; shared: read only

	Epoch uint64 // of the mastership this node has of the VIP's instance; 0: it has none
	Bound bool   // to be announced only while this node hears from a quorum
}

// Announcing says of which instances a node announces VIPs by the state alone:
// it is in the succession, and not a backup that is to be silent.
func Announcing(s *fsm.State, node fsm.NodeID) map[string]bool {
	out := map[string]bool{}
	for _, in := range s.Instances() {
		if announces(in, node) {
			out[in.Name] = true
		}
	}
	return out
}

func announces(in fsm.Instance, node fsm.NodeID) bool {
	if node == "" || !slices.Contains(in.Succession, node) {
		return false
	}
	return in.Kind == fsm.InstanceECMP || in.AnnouncePolicy != fsm.PolicyMasterOnly || in.Master == node
}

// MayPart says whether a node that announced the VIPs of an instance and is not to
// do so any more can go on for a moment as the last choice, so that routers have
// another path before this one goes: it was drained, or another was made master by
// decision. Whatever else took its place away may keep it from forwarding.
func MayPart(s *fsm.State, node fsm.NodeID, instance string) bool {
	n, known := s.Node(node)
	in, ok := s.Instance(instance)
	return known && ok && n.Alive && n.Ready && n.LinksUp && (n.Draining || slices.Contains(in.Succession, node))
}

// standing is what this machine announces of the VIPs of one instance.
type standing struct {
	announces bool
	like      Route // but for the prefix and what depends on the family
	nextHops  []netip.Addr
	epoch     uint64 // of the instance
}

// standing computes it once for each instance.
func (c *compiler) standing(instance string) standing {
	if st, known := c.standings[instance]; known {
		return st
	}
	st := standing{}
	if in, ok := c.state.Instance(instance); ok {
		st = c.standingIn(in)
	}
	c.standings[instance] = st
	return st
}

func (c *compiler) standingIn(in fsm.Instance) standing {
	self := c.self.Node
	st := standing{epoch: in.Epoch, nextHops: in.NextHops, announces: true}
	me, _ := c.state.Node(self)
	switch {
	case announces(in, self) && !me.Draining:
		rank := slices.Index(in.Succession, self)
		if in.Master != self {
			rank = max(rank, c.self.Rank[in.Name])
		}
		st.like = attributes(in, rank, c.missing(in))
	case announces(in, self), c.self.Parting[in.Name] && MayPart(c.state, self, in.Name):
		st.like = lastChoice()
	default:
		return standing{}
	}
	if in.Master == self {
		st.like.Epoch = in.Epoch
	}
	for _, community := range in.Communities {
		switch p, err := community.Parts(); {
		case err != nil: // the state holds none that is wrong
		case len(p) == 2:
			st.like.Communities = append(st.like.Communities, p[0]<<16|p[1])
		case len(p) == 3:
			st.like.LargeCommunities = append(st.like.LargeCommunities, [3]uint32{p[0], p[1], p[2]})
		}
	}
	return st
}

// missing counts the load balancers that have no place in the succession.
func (c *compiler) missing(in fsm.Instance) int {
	n := 0
	for _, node := range c.state.Nodes() {
		if node.Role == fsm.RoleLB && !slices.Contains(in.Succession, node.Name) {
			n++
		}
	}
	return n
}

// attributes are those of a place in the succession. Where all serve alike, or lead
// to the same next hop, all are the same: then a change of places changes no route.
//
// Until its session's hold time is over, what a dead master told stands in the
// routers' tables as it was, and a router may keep it for a node that comes back
// without its flows. So the master's routes are better by one for each node that is
// missing: they win as soon as they come, whatever a router makes of a tie.
func attributes(in fsm.Instance, rank, missing int) Route {
	like := Route{MED: firstMED, LocalPref: firstLocalPref}
	if in.Kind == fsm.InstanceECMP {
		return like
	}
	if rank <= 0 {
		missing = min(missing, firstMED)
		like.MED -= uint32(missing)
		like.LocalPref += uint32(missing)
		return like
	}
	rank = min(rank, mostRanks-1)
	like.MED <<= rank
	like.LocalPref -= uint32(stepLocalPref * rank)
	if in.ASPrepend {
		like.Prepend = uint8(rank)
	}
	return like
}

// lastChoice are the attributes of a path that is about to go (RFC 8326).
func lastChoice() Route {
	return Route{MED: math.MaxUint32, Communities: []uint32{gracefulShutdown}}
}

// AsLastChoice is a route that neighbours are to use only if they know no other.
func (r Route) AsLastChoice() Route {
	last := lastChoice()
	r.MED, r.LocalPref, r.Prepend = last.MED, last.LocalPref, last.Prepend
	if !slices.Contains(r.Communities, gracefulShutdown) {
		r.Communities = append(last.Communities, r.Communities...)
	}
	return r
}

// routed adds a VIP that BGP brings here: the address, and the route unless no
// endpoint would take what it brings.
func (c *compiler) routed(v fsm.VIP) {
	st := c.standing(v.Instance)
	if !st.announces {
		return
	}
	bound := v.OnQuorumLoss != fsm.QuorumHold
	c.plan.Addresses = append(c.plan.Addresses, Address{Addr: v.Address, Link: Loopback, Epoch: st.epoch, Bound: bound})
	if v.OnNoEndpoint != fsm.NoEndpointKeep && !c.state.TakesNewFlows(v.Address) {
		c.plan.Withheld = append(c.plan.Withheld, v.Address)
		return
	}
	r := st.like
	r.Prefix, r.Bound = netip.PrefixFrom(v.Address, v.Address.BitLen()), bound
	for _, hop := range st.nextHops {
		if hop.Is4() == v.Address.Is4() && !slices.Contains(st.nextHops, v.Address) {
			r.byNextHop(hop)
		}
	}
	c.plan.Routes = append(c.plan.Routes, r)
}

// byNextHop leads the route to an address that moves with the master. By whom it was
// told does not matter then, so it says the same whoever is master: at a failover
// nothing of it changes.
func (r *Route) byNextHop(hop netip.Addr) {
	r.NextHop = hop
	if r.MED != math.MaxUint32 {
		r.MED, r.LocalPref, r.Prepend = firstMED, firstLocalPref, 0
	}
}
