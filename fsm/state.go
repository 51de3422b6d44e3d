package fsm

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// State is the whole replicated state at one log index. It is immutable and
// may be shared between goroutines. The zero State is not usable: start with
// New or Restore.
type State struct {
	index       uint64
	serviceIDs  idRing
	endpointIDs idRing // of the endpoints of all services
	cluster     Cluster
	nodes       table[NodeID, Node]
	instances   table[string, Instance]
	vips        table[netip.Addr, VIP]
	services    table[string, Service]
	health      table[uint32, Verdict]    // by the id of the endpoint; those of which nothing is known are not in it
	frontends   table[frontend, listener] // index over services: who listens where
	tokens      table[string, Token]
	failovers   []Failover // newest first; copied on write
	bgp         *BGP       // nil: the defaults; never written to
	bgpPeers    table[peerKey, BGPPeer]
	pools       table[string, Pool]
}

// frontend is where a service begins to listen. Every port belongs to one
// service at most, so it is the key of the service's whole range.
type frontend struct {
	vip      netip.Addr
	protocol Protocol
	port     uint16
}

// listener is who listens from a frontend on, and up to which port.
type listener struct {
	service string
	last    uint16
}

func compareFrontends(a, b frontend) int {
	return cmp.Or(a.vip.Compare(b.vip), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
}

func frontendOf(svc Service) frontend {
	return frontend{vip: svc.VIP, protocol: svc.Protocol, port: svc.Port}
}

func listenerOf(svc Service) listener { return listener{service: svc.Name, last: svc.LastPort()} }

// empty returns a state without even the default instance.
func empty() *State {
	return &State{
		serviceIDs:  newIDRing(),
		endpointIDs: newIDRing(),
		nodes:       newTable[NodeID, Node](cmp.Compare[NodeID]),
		instances:   newTable[string, Instance](cmp.Compare[string]),
		vips:        newTable[netip.Addr, VIP](netip.Addr.Compare),
		services:    newTable[string, Service](cmp.Compare[string]),
		health:      newTable[uint32, Verdict](cmp.Compare[uint32]),
		frontends:   newTable[frontend, listener](compareFrontends),
		tokens:      newTable[string, Token](cmp.Compare[string]),
		bgpPeers:    newTable[peerKey, BGPPeer](comparePeers),
		pools:       newTable[string, Pool](cmp.Compare[string]),
	}
}

// New returns the state before the first command: no cluster, no nodes, and
// DefaultInstance without a master.
func New() *State {
	s := empty()
	s.instances.put(DefaultInstance, Instance{Name: DefaultInstance, Assignment: Assignment{Succession: []NodeID{}}})
	s.freeze()
	return s
}

func (s *State) freeze() {
	s.serviceIDs.freeze()
	s.endpointIDs.freeze()
	s.nodes.freeze()
	s.instances.freeze()
	s.vips.freeze()
	s.services.freeze()
	s.health.freeze()
	s.frontends.freeze()
	s.tokens.freeze()
	s.bgpPeers.freeze()
	s.pools.freeze()
}

// Index returns the log index of the last command applied, also of one that
// was refused.
func (s *State) Index() uint64 { return s.index }

// Cluster returns what the cluster as a whole agrees on; its ID is "" before
// InitCluster. CA and GossipKey are shared: read only.
func (s *State) Cluster() Cluster { return s.cluster }

// Nodes returns the members, sorted by name. Their Key is shared: read only.
func (s *State) Nodes() []Node { return s.nodes.values() }

// Node returns the member of that name. Its Key is shared: read only.
func (s *State) Node(name NodeID) (Node, bool) { return valueOf(s.nodes.get(name)) }

// Instances returns the instances with their assignments, sorted by name.
func (s *State) Instances() []Instance {
	out := s.instances.values()
	for i := range out {
		out[i] = cloneInstance(out[i])
	}
	return out
}

// Instance returns the instance of that name with its assignment.
func (s *State) Instance(name string) (Instance, bool) {
	inst, ok := valueOf(s.instances.get(name))
	return cloneInstance(inst), ok
}

func cloneInstance(inst Instance) Instance {
	inst.Priorities = maps.Clone(inst.Priorities)
	inst.Succession = slices.Clone(inst.Succession)
	inst.NextHops = slices.Clone(inst.NextHops)
	inst.Communities = slices.Clone(inst.Communities)
	return inst
}

// VIPs returns the virtual addresses, sorted by address.
func (s *State) VIPs() []VIP { return s.vips.values() }

// VIP returns the virtual address.
func (s *State) VIP(addr netip.Addr) (VIP, bool) { return valueOf(s.vips.get(addr.Unmap())) }

// Services returns the services, sorted by name. Their Endpoints are shared
// with the state: read only.
func (s *State) Services() []Service { return s.services.values() }

// Service returns the service of that name. Its Endpoints are shared with the
// state: read only.
func (s *State) Service(name string) (Service, bool) { return valueOf(s.services.get(name)) }

// Tokens returns the join tokens that have neither been used nor revoked,
// sorted by id; some may have expired. Their Hash is shared: read only.
func (s *State) Tokens() []Token { return s.tokens.values() }

// Eligible returns the nodes that may be master of the instance now, in order
// of preference. The incumbent has no privilege in this order: it is the order
// in which a successor would be picked. The list is empty for an unknown
// instance.
func (s *State) Eligible(instance string) []NodeID {
	inst := s.instances.get(instance)
	if inst == nil {
		return []NodeID{}
	}
	return rank(*inst, eligible(s.nodes.values()))
}

// servicesOn returns the names of the services on a virtual address, in order.
func (s *State) servicesOn(addr netip.Addr) []string {
	i, _ := s.frontends.find(frontend{vip: addr})
	var names []string
	for ; i < s.frontends.len() && s.frontends.rows[i].key.vip == addr; i++ {
		names = append(names, s.frontends.rows[i].val.service)
	}
	slices.Sort(names)
	return names
}

// overlapping returns a service other than svc that listens on one of its ports.
// The ranges of one address and protocol do not overlap each other, so only the
// one that begins before svc may reach into it; those that begin inside follow.
func (s *State) overlapping(svc Service) (string, bool) {
	want := frontendOf(svc)
	i, _ := s.frontends.find(want)
	if i > 0 {
		i--
	}
	for ; i < s.frontends.len(); i++ {
		at, l := s.frontends.rows[i].key, s.frontends.rows[i].val
		same := at.vip == want.vip && at.protocol == want.protocol
		switch {
		case same && at.port <= svc.LastPort() && l.last >= want.port && l.service != svc.Name:
			return l.service, true
		case compareFrontends(at, want) > 0 && (!same || at.port > svc.LastPort()):
			return "", false
		}
	}
	return "", false
}

func valueOf[V any](p *V) (V, bool) {
	if p == nil {
		var zero V
		return zero, false
	}
	return *p, true
}
