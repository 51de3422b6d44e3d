// Package plan compiles the replicated state into what one node must do now:
// its data plane, the addresses it holds and what it announces, to its links and
// to its BGP neighbours.
//
// It is pure: the same state and the same picture of the host give the same
// plan. It touches nothing; the drivers in node do, each comparing the whole
// wanted set with what is there.
package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
)

// Self is what a plan must know of the machine it is for.
type Self struct {
	Node  fsm.NodeID
	Links []Link // the data plane interfaces, in the order of the node file
	// Parting are the instances whose VIPs this machine announced until lately and
	// is to announce for a moment yet, as the last choice; see MayPart.
	Parting map[string]bool
	// Rank is, for each instance, the place in the succession that this machine shows
	// its neighbours while it is a worse one than it has; 0 is the master's.
	Rank map[string]int
}

// Link is one data plane interface with the machine's own subnets on it.
type Link struct {
	Name     string
	Prefixes []netip.Prefix // the interface's own addresses of either family, VIPs left out; link-local ones are ignored
}

// Address is one VIP this machine is to hold. One on Loopback several machines may
// hold at once, and none of them answers for it on a link.
type Address struct {
	Addr  netip.Addr
	Link  string
	Epoch uint64 // of the mastership of its instance
	Bound bool   // to be claimed only while this node hears from a quorum
}

// Advert is one VIP this machine is to make known. A new Epoch asks for it to
// be announced anew although nothing else changed.
type Advert struct {
	Addr  netip.Addr
	Link  string
	Epoch uint64
}

// Plan is everything one node is to be at the state's index Gen.
type Plan struct {
	Gen       uint64
	Dataplane bpf.Desired
	Addresses []Address
	Adverts   []Advert
	Routes    []Route      // by prefix
	Withheld  []netip.Addr // VIPs this machine would announce by BGP if an endpoint took new flows
	Managed   []netip.Addr // every VIP of the cluster: what this host may hold, and must not when Addresses lacks it
	Problems  []string     // what cannot be done here, in words for the operator
}

// Services is the part of a plan that follows from what operators configure and
// from the machine, but not from who is master. It is by far the larger part,
// and the same before and after a failover.
type Services struct {
	dataplane bpf.Desired
	instances []string // of dataplane.Services, by position
	routed    []bool   // whether their VIPs are announced by BGP, by position
	problems  []string
}

// Compile computes the plan of self at s. A node that is not in the state, or
// that is a witness, gets an empty plan, by which its flows run out. Every load balancer forwards for
// every service, master or not: what still reaches a backup must go on.
func Compile(s *fsm.State, self Self) Plan {
	return CompileServices(s, self).Plan(s, self)
}

// CompileServices computes the larger part of the plan of self at s. It may be
// used at other states while fsm.SharesConfig says so and self is the same and
// still a member, or still none.
func CompileServices(s *fsm.State, self Self) Services {
	me, ok := s.Node(self.Node)
	if !ok || me.Role != fsm.RoleLB {
		return Services{dataplane: bpf.Desired{Retired: true}}
	}
	vips := s.VIPs()
	var p Plan
	for _, v := range vips {
		p.Dataplane.VIPs = append(p.Dataplane.VIPs, v.Address)
	}
	c := newCompiler(s, self, &p)
	c.shared = c.sharedSources(vips)
	for _, svc := range s.Services() {
		c.service(svc)
	}
	return Services{dataplane: p.Dataplane, instances: c.instances, routed: c.byBGP, problems: p.Problems}
}

// Plan completes the plan of self at s. The data plane of plans made from the
// same Services shares their memory.
func (v Services) Plan(s *fsm.State, self Self) Plan {
	p := Plan{Gen: s.Index(), Dataplane: v.dataplane}
	p.Dataplane.Gen = s.Index()
	vips := s.VIPs()
	for _, v := range vips {
		p.Managed = append(p.Managed, v.Address)
	}
	if me, ok := s.Node(self.Node); !ok || me.Role != fsm.RoleLB {
		return p
	}
	p.Dataplane.Services = v.withParts(Parts(s, self.Node))
	c := newCompiler(s, self, &p)
	for _, v := range vips {
		c.vip(v)
	}
	p.Problems = append(p.Problems, v.problems...)
	return p
}

// Part is what a node is in an instance, as far as its data plane has to know.
type Part struct {
	Epoch  uint32     // of the mastership that it has, as flow records carry it: the low 32 bits; 0: it has none
	Strays bpf.Strays // the nodes that may know connections to VIPs announced by BGP which this one does not know
}

// Parts are what a node is in the instances at s, by instance; those in which it is nothing are left out. Of an
// instance without a master nobody has an epoch: of two nodes that forward a connection none has the better right to it.
//
// While its data plane forwards, a master is where the endpoints' answers arrive, so who follows it brings it what it
// does not know. But routers turn to that one as soon as they miss the master's daemon, so the master in turn brings it the answers.
func Parts(s *fsm.State, node fsm.NodeID) map[string]Part {
	parts := map[string]Part{}
	for _, in := range s.Instances() {
		if in.Master == "" || node == "" {
			continue
		}
		var p Part
		if in.Master != node {
			p.Strays.Clients = slotBit(s, in.Master)
			p.Strays.Answers = p.Strays.Clients
		} else {
			p.Epoch = uint32(in.Epoch)
			if len(in.Succession) > 1 {
				p.Strays.Answers = slotBit(s, in.Succession[1])
			}
		}
		parts[in.Name] = p
	}
	return parts
}

// slotBit is the bit of a node's slot.
func slotBit(s *fsm.State, node fsm.NodeID) uint8 {
	if n, ok := s.Node(node); ok && n.Slot < fsm.MaxSlots {
		return 1 << n.Slot
	}
	return 0
}

// withParts are the services with what follows from what this node is in their instances.
func (v Services) withParts(parts map[string]Part) []bpf.Service {
	if len(parts) == 0 {
		return v.dataplane.Services
	}
	out := slices.Clone(v.dataplane.Services)
	for i := range out {
		part := parts[v.instances[i]]
		out[i].Epoch = part.Epoch
		if v.routed[i] {
			out[i].Strays = part.Strays
		}
	}
	return out
}

type compiler struct {
	state  *fsm.State
	self   Self
	shared map[side]shared // what endpoints may see as source
	plan   *Plan

	instances []string            // of the services compiled so far
	byBGP     []bool              // whether their VIPs are announced by BGP
	standings map[string]standing // by instance
}

func newCompiler(s *fsm.State, self Self, p *Plan) *compiler {
	return &compiler{state: s, self: withoutLinkLocal(self), plan: p, standings: map[string]standing{}}
}

// withoutLinkLocal leaves out the addresses that no router sends back to.
func withoutLinkLocal(self Self) Self {
	links := make([]Link, len(self.Links))
	for i, l := range self.Links {
		links[i].Name = l.Name
		for _, p := range l.Prefixes {
			if !p.Addr().Is6() || !p.Addr().IsLinkLocalUnicast() {
				links[i].Prefixes = append(links[i].Prefixes, p)
			}
		}
	}
	self.Links = links
	return self
}

func (c *compiler) problem(format string, args ...any) {
	c.plan.Problems = append(c.plan.Problems, fmt.Sprintf(format, args...))
}

// vip adds the address and its announcement when this node is the master of
// its instance. An interface that is missing is a problem on every node: a
// backup should tell before it is needed.
func (c *compiler) vip(v fsm.VIP) {
	if v.Announce == fsm.AnnounceBGP {
		c.routed(v)
		return
	}
	link := v.Interface
	if link == "" {
		l, ok := c.linkOf(v.Address)
		if !ok {
			c.problem("vip %s: no data plane interface here has a subnet that contains it; give it one with --interface", v.Address)
			return
		}
		link = l.Name
	} else if !slices.ContainsFunc(c.self.Links, func(l Link) bool { return l.Name == link }) {
		c.problem("vip %s: interface %s is not a data plane interface here", v.Address, link)
		return
	}
	in, ok := c.state.Instance(v.Instance)
	if !ok || in.Master != c.self.Node {
		return
	}
	c.plan.Addresses = append(c.plan.Addresses, Address{
		Addr: v.Address, Link: link, Epoch: in.Epoch, Bound: v.OnQuorumLoss != fsm.QuorumHold,
	})
	if v.Announce == fsm.AnnounceL2 {
		c.plan.Adverts = append(c.plan.Adverts, Advert{Addr: v.Address, Link: link, Epoch: in.Epoch})
	}
}

func (c *compiler) service(s fsm.Service) {
	d := bpf.Service{
		ID:          s.ID,
		VIP:         netip.AddrPortFrom(s.VIP, s.Port),
		PortEnd:     s.PortEnd,
		Protocol:    protocolNumber(s.Protocol),
		Mode:        mode(s.Mode),
		Tunnel:      tunnel(s.Tunnel),
		Algorithm:   algorithm(s.Algorithm),
		IdleTimeout: time.Duration(s.IdleTimeout),
		IdleReset:   s.IdleReset,
		NewFlowRate: s.NewFlowRate,
		OnRemove:    onRemove(s.OnRemove),
		OnDead:      onDead(s.OnDown),
		Closed:      s.AllDown == fsm.AllDownClosed,
		OnFull:      onFull(s.OnFull),
		Replicate:   replicate(s.Replicate),
		Seed:        c.state.Cluster().Seed ^ s.ID,
	}
	d.ReplicateMinAge = time.Duration(s.ReplicateMinAge)
	if s.Affinity == fsm.AffinityClientIP {
		d.Affinity = time.Duration(s.AffinityTimeout)
	}
	instance, routed := fsm.DefaultInstance, false
	if v, ok := c.state.VIP(s.VIP); ok {
		instance, routed = v.Instance, v.Announce == fsm.AnnounceBGP
	}
	if in, ok := c.state.Instance(instance); ok {
		d.Shared = in.Kind == fsm.InstanceECMP
	}
	d.Endpoints = make([]bpf.Endpoint, 0, len(s.Endpoints))
	health := c.healthOf(s)
	for _, e := range s.Endpoints {
		d.Endpoints = append(d.Endpoints, c.endpoint(s, instance, e, health))
	}
	c.plan.Dataplane.Services = append(c.plan.Dataplane.Services, d)
	c.instances, c.byBGP = append(c.instances, instance), append(c.byBGP, routed)
}

// endpoint is one endpoint of a service, in whatever state: the data plane has
// to tell one that is drained from one that is gone. One that cannot be reached
// from here takes no new flows, and keeps those it has.
func (c *compiler) endpoint(s fsm.Service, instance string, e fsm.Endpoint, h health) bpf.Endpoint {
	d := bpf.Endpoint{ID: e.ID, Addr: e.Address, State: state(e.Admin), DrainUntil: e.DrainUntil}
	h.apply(&d, e, c.state.Health(e.ID))
	var why string
	d.Sources, why = c.sources(s, instance, e.Address.Addr())
	if why == "" || d.State != bpf.EndpointUp {
		return d
	}
	d.State = bpf.EndpointDrain
	if e.Weight > 0 {
		c.problem("service %s: endpoint %s gets no new flows from here: %s", s.Name, e.Address, why)
	}
	return d
}

// linkOf finds the link whose subnet contains a, the longest prefix first.
func (c *compiler) linkOf(a netip.Addr) (Link, bool) {
	best, bits := Link{}, -1
	for _, l := range c.self.Links {
		for _, p := range l.Prefixes {
			if p.Contains(a) && p.Bits() > bits {
				best, bits = l, p.Bits()
			}
		}
	}
	return best, bits >= 0
}

func protocolNumber(p fsm.Protocol) uint8 {
	switch p {
	case fsm.UDP:
		return 17
	case fsm.SCTP:
		return 132
	}
	return 6
}

func mode(m fsm.Mode) bpf.Mode {
	switch m {
	case fsm.ModeDNAT:
		return bpf.ModeDNAT
	case fsm.ModeOneArm:
		return bpf.ModeOneArm
	case fsm.ModeDSR:
		return bpf.ModeDSR
	}
	return bpf.ModeFullNAT
}

func tunnel(t fsm.Tunnel) bpf.Tunnel {
	if t == fsm.TunnelIPIP {
		return bpf.TunnelIPIP
	}
	return bpf.TunnelL2
}

func algorithm(a fsm.Algorithm) bpf.Algorithm {
	switch a {
	case fsm.Maglev:
		return bpf.AlgorithmMaglev
	case fsm.LeastConnections:
		return bpf.AlgorithmLC
	}
	return bpf.AlgorithmRR
}

func onRemove(p fsm.RemovePolicy) bpf.Policy {
	switch p {
	case fsm.RemoveDrop:
		return bpf.PolicyDrop
	case fsm.RemoveKeep:
		return bpf.PolicyKeep
	}
	return bpf.PolicyReset
}

func onDead(p fsm.DownPolicy) bpf.Policy {
	switch p {
	case fsm.DownReset:
		return bpf.PolicyReset
	case fsm.DownMove:
		return bpf.PolicyMove
	}
	return bpf.PolicyKeep
}

func onFull(p fsm.FullPolicy) bpf.Policy {
	if p == fsm.FullReset {
		return bpf.PolicyReset
	}
	return bpf.PolicyDrop
}

func replicate(r fsm.Replicate) bpf.Replicate {
	switch r {
	case fsm.ReplicateAll:
		return bpf.ReplicateAll
	case fsm.ReplicateNone:
		return bpf.ReplicateNone
	}
	return bpf.ReplicateEstablished
}

func state(a fsm.AdminState) bpf.EndpointState {
	switch a {
	case fsm.AdminDrain:
		return bpf.EndpointDrain
	case fsm.AdminDown:
		return bpf.EndpointDown
	}
	return bpf.EndpointUp
}
