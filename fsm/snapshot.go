package fsm

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// snapshotVersion is the newest version of the snapshot's form, which goes with
// commandVersion. Version 1 had no ids of endpoints, and ids of services without
// a bound; version 2 said nothing of what is replicated, version 3 nothing of
// failovers, recoveries and of VIPs without a quorum, version 4 nothing of BGP and
// of the settings of instances, version 5 nothing of the health of endpoints.
const snapshotVersion = commandVersion

// snapshot is the form of a snapshot. S is Service when written and
// storedService when read.
type snapshot[S any] struct {
	Version      int        `json:"v"`
	Index        uint64     `json:"index"`
	NextService  uint32     `json:"next_service"`  // where the search for the next id begins
	NextEndpoint uint32     `json:"next_endpoint"` // likewise
	Cluster      Cluster    `json:"cluster"`
	Nodes        []Node     `json:"nodes"`
	Instances    []Instance `json:"instances"`
	VIPs         []VIP      `json:"vips"`
	Services     []S        `json:"services"`
	Tokens       []Token    `json:"tokens"`
	Failovers    []Failover `json:"failovers,omitempty"` // since version 4
	BGP          *BGP       `json:"bgp,omitempty"`       // since version 5
	BGPPeers     []BGPPeer  `json:"bgp_peers,omitempty"` // since version 5
	Health       []Verdict  `json:"health,omitempty"`    // since version 6
	Pools        []Pool     `json:"pools,omitempty"`     // since version 6
}

// storedService hides the endpoints of Service behind ones without the default
// weight. A snapshot always has the weight, and reading millions of endpoints
// through a method of their own takes several times as long.
type storedService struct {
	Service
	Endpoints []storedEndpoint `json:"endpoints"`
}

type storedEndpoint Endpoint

func (in storedService) service() Service {
	svc := in.Service
	svc.Endpoints = make([]Endpoint, len(in.Endpoints))
	for i, e := range in.Endpoints {
		svc.Endpoints[i] = Endpoint(e)
	}
	return svc
}

// Snapshot returns the state as bytes. Equal states give equal bytes. It may
// take long for a big state, and may run beside Apply.
func (s *State) Snapshot() ([]byte, error) {
	version, services := baseVersion, s.services.values()
	for i, svc := range services {
		needed := 0
		services[i], needed = oldest(svc)
		version = max(version, needed)
	}
	if len(s.failovers) > 0 || s.cluster.Recoveries > 0 {
		version = max(version, failoverVersion)
	}
	instances := s.instances.values()
	if s.bgp != nil || s.bgpPeers.len() > 0 || slices.ContainsFunc(instances, Instance.hasSettings) {
		version = max(version, bgpVersion)
	}
	if s.pools.len() > 0 {
		version = max(version, poolVersion)
	}
	vips := s.vips.values()
	for i, v := range vips {
		needed := 0
		vips[i], needed = oldestVIP(v)
		version = max(version, needed)
	}
	b, err := json.Marshal(snapshot[Service]{
		Version: version, Index: s.index, Cluster: s.cluster,
		NextService: s.serviceIDs.next, NextEndpoint: s.endpointIDs.next,
		Nodes: s.nodes.values(), Instances: instances, VIPs: vips,
		Services: services, Tokens: s.tokens.values(), Failovers: s.failovers,
		BGP: s.bgp, BGPPeers: s.bgpPeers.values(), Pools: s.pools.values(), Health: s.health.values(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode snapshot: %w", err)
	}
	return b, nil
}

// Restore reads what Snapshot wrote. A newer version matches ErrUnsupported;
// bytes that are no snapshot, or one that contradicts itself, match ErrInvalid.
//
// It checks what the rest of the package relies on, not the rules for new
// commands: those may get stricter, and an old snapshot must still be readable.
func Restore(b []byte) (*State, error) {
	var in snapshot[storedService]
	err := strict(b, &in)
	if err != nil {
		// A newer version may have keys this one does not know.
		in.Version = peekVersion(b)
	}
	switch {
	case in.Version > snapshotVersion:
		return nil, refuse(ErrUnsupported, "decode snapshot: it has version %d, and this program reads up to %d: upgrade this node", in.Version, snapshotVersion)
	case err != nil:
		return nil, refuse(ErrInvalid, "decode snapshot: %v", err)
	case in.Version < 1:
		return nil, refuse(ErrInvalid, "decode snapshot: version %d never was", in.Version)
	}
	s, err := fill(upgraded(in))
	if err != nil {
		return nil, refuse(ErrInvalid, "decode snapshot: %v", err)
	}
	return s, nil
}

// upgraded gives a snapshot of an older version what the present one has: ids
// of endpoints, in order of services and addresses, and ids of services that
// are within MaxID.
func upgraded(in snapshot[storedService]) snapshot[storedService] {
	if in.Version != 1 {
		return in
	}
	in.NextEndpoint = 1
	if in.NextService > MaxID {
		in.NextService = 1
	}
	ids := newIDRing()
	for _, svc := range in.Services {
		if svc.ID > 0 && svc.ID <= MaxID && !ids.has(svc.ID) {
			ids.put(svc.ID)
		}
	}
	for i, svc := range in.Services {
		if svc.ID > MaxID && ids.room() > 0 {
			in.Services[i].ID = ids.take()
		}
		for j := range svc.Endpoints {
			if in.NextEndpoint <= MaxID {
				svc.Endpoints[j].ID = in.NextEndpoint
				in.NextEndpoint++
			}
		}
	}
	in.NextEndpoint = min(in.NextEndpoint, MaxID)
	return in
}

// fill builds the tables and checks that they fit together.
func fill(in snapshot[storedService]) (*State, error) {
	if in.NextService == 0 || in.NextService > MaxID || in.NextEndpoint == 0 || in.NextEndpoint > MaxID {
		return nil, errors.New("a counter of ids is missing or out of range")
	}
	s := empty()
	s.index, s.cluster = in.Index, in.Cluster
	s.serviceIDs.next, s.endpointIDs.next = in.NextService, in.NextEndpoint
	for _, n := range in.Nodes {
		if s.nodes.has(n.Name) {
			return nil, fmt.Errorf("node %s is there twice", shown(n.Name))
		}
		if len(n.Key) != KeySize {
			return nil, fmt.Errorf("node %s has a key of %d bytes, not %d", shown(n.Name), len(n.Key), KeySize)
		}
		s.nodes.put(n.Name, n)
	}
	for _, inst := range in.Instances {
		if s.instances.has(inst.Name) {
			return nil, fmt.Errorf("instance %s is there twice", shown(inst.Name))
		}
		if inst.Master != "" && !s.nodes.has(inst.Master) {
			return nil, fmt.Errorf("instance %s has master %s, which is no node", shown(inst.Name), shown(inst.Master))
		}
		if inst.Kind == InstanceECMP && inst.Master != "" {
			return nil, fmt.Errorf("instance %s has master %s, which its kind does not have", shown(inst.Name), shown(inst.Master))
		}
		if inst.Succession == nil || inst.Epoch > in.Index {
			return nil, fmt.Errorf("instance %s has an assignment that cannot be", shown(inst.Name))
		}
		s.instances.put(inst.Name, inst)
	}
	if !s.instances.has(DefaultInstance) {
		return nil, errors.New("the default instance is missing")
	}
	for _, t := range in.Tokens {
		if s.tokens.has(t.ID) {
			return nil, fmt.Errorf("token %s is there twice", shown(t.ID))
		}
		s.tokens.put(t.ID, t)
	}
	for _, f := range in.Failovers {
		s.failovers = withFailover(s.failovers, f)
	}
	if err := s.fillBGP(in); err != nil {
		return nil, err
	}
	for _, p := range in.Pools {
		if s.pools.has(p.Name) || !s.instances.has(p.Instance) {
			return nil, fmt.Errorf("pool %s is there twice or of no instance", shown(p.Name))
		}
		s.pools.put(p.Name, p)
	}
	if err := s.fillServices(in); err != nil {
		return nil, err
	}
	if err := s.fillHealth(in.Health); err != nil {
		return nil, err
	}
	s.freeze()
	return s, nil
}

func (s *State) fillBGP(in snapshot[storedService]) error {
	if s.bgp = in.BGP; s.bgp != nil {
		*s.bgp = normalBGP(*s.bgp)
	}
	for _, p := range in.BGPPeers {
		if !p.Address.IsValid() || s.bgpPeers.has(p.key()) {
			return fmt.Errorf("bgp peer %s is there twice, or is none", p.Address)
		}
		s.bgpPeers.put(p.key(), p)
	}
	return nil
}

func (s *State) fillServices(in snapshot[storedService]) error {
	for _, v := range in.VIPs {
		if s.vips.has(v.Address) || !s.instances.has(v.Instance) {
			return fmt.Errorf("vip %s is there twice or in no instance", v.Address)
		}
		if v.Pool != "" && !s.pools.has(v.Pool) {
			return fmt.Errorf("vip %s is of pool %s, which is none", v.Address, shown(v.Pool))
		}
		v.OnQuorumLoss = cmp.Or(v.OnQuorumLoss, QuorumRelease)
		s.vips.put(v.Address, v)
	}
	for _, stored := range in.Services {
		svc := withDefaults(stored.service())
		if s.services.has(svc.Name) {
			return fmt.Errorf("service %s is there twice", shown(svc.Name))
		}
		if svc.PortEnd != 0 && svc.PortEnd <= svc.Port {
			return fmt.Errorf("service %s has ports that cannot be", shown(svc.Name))
		}
		if other, taken := s.overlapping(svc); taken {
			return fmt.Errorf("service %s listens where service %s does", shown(svc.Name), shown(other))
		}
		if !s.vips.has(svc.VIP) {
			return fmt.Errorf("service %s is on %s, which is no vip", shown(svc.Name), svc.VIP)
		}
		if err := s.fillIDs(svc); err != nil {
			return fmt.Errorf("service %s: %w", shown(svc.Name), err)
		}
		s.services.put(svc.Name, svc)
		s.frontends.put(frontendOf(svc), listenerOf(svc))
	}
	return nil
}

// fillHealth takes the verdicts, which only exist about endpoints of services
// that are probed, and so of which the snapshot has version 6 anyway.
func (s *State) fillHealth(verdicts []Verdict) error {
	for _, v := range verdicts {
		if !s.endpointIDs.has(v.Endpoint) || s.health.has(v.Endpoint) || v.Endpoint == 0 {
			return fmt.Errorf("there is a verdict about endpoint %d, which is not there, or two", v.Endpoint)
		}
		if v.Health != HealthUp && v.Health != HealthDown {
			return fmt.Errorf("endpoint %d is %s, which cannot be", v.Endpoint, shown(v.Health))
		}
		s.health.put(v.Endpoint, v)
	}
	return nil
}

// fillIDs checks the endpoints' order, and the ids of a service and its
// endpoints, which it takes.
func (s *State) fillIDs(svc Service) error {
	if svc.ID > MaxID || s.serviceIDs.has(svc.ID) {
		return fmt.Errorf("id %d cannot be, or is there twice", svc.ID)
	}
	s.serviceIDs.put(svc.ID)
	for i, e := range svc.Endpoints {
		if i > 0 && svc.Endpoints[i-1].Address.Compare(e.Address) >= 0 {
			return errors.New("endpoints are out of order")
		}
		if e.ID > MaxID || s.endpointIDs.has(e.ID) {
			return fmt.Errorf("endpoint %s: id %d cannot be, or is there twice", e.Address, e.ID)
		}
		s.endpointIDs.put(e.ID)
	}
	return nil
}
