package fsm

import (
	"encoding/json"
	"errors"
	"fmt"
)

// snapshotVersion is the version of the snapshot's form; see commandVersion.
const snapshotVersion = 1

// snapshot is the form of a snapshot. S is Service when written and
// storedService when read.
type snapshot[S any] struct {
	Version     int        `json:"v"`
	Index       uint64     `json:"index"`
	NextService uint32     `json:"next_service"`
	Cluster     Cluster    `json:"cluster"`
	Nodes       []Node     `json:"nodes"`
	Instances   []Instance `json:"instances"`
	VIPs        []VIP      `json:"vips"`
	Services    []S        `json:"services"`
	Tokens      []Token    `json:"tokens"`
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
	b, err := json.Marshal(snapshot[Service]{
		Version: snapshotVersion, Index: s.index, NextService: s.nextService, Cluster: s.cluster,
		Nodes: s.nodes.values(), Instances: s.instances.values(), VIPs: s.vips.values(),
		Services: s.services.values(), Tokens: s.tokens.values(),
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
	s, err := fill(in)
	if err != nil {
		return nil, refuse(ErrInvalid, "decode snapshot: %v", err)
	}
	return s, nil
}

// fill builds the tables and checks that they fit together.
func fill(in snapshot[storedService]) (*State, error) {
	if in.NextService == 0 {
		return nil, errors.New("the counter of services is missing")
	}
	s := empty()
	s.index, s.nextService, s.cluster = in.Index, in.NextService, in.Cluster
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
	if err := s.fillServices(in); err != nil {
		return nil, err
	}
	s.freeze()
	return s, nil
}

func (s *State) fillServices(in snapshot[storedService]) error {
	for _, v := range in.VIPs {
		if s.vips.has(v.Address) || !s.instances.has(v.Instance) {
			return fmt.Errorf("vip %s is there twice or in no instance", v.Address)
		}
		s.vips.put(v.Address, v)
	}
	ids := make(map[uint32]bool, len(in.Services))
	for _, stored := range in.Services {
		svc := stored.service()
		switch {
		case s.services.has(svc.Name) || s.frontends.has(frontendOf(svc)):
			return fmt.Errorf("service %s or its frontend is there twice", shown(svc.Name))
		case svc.ID == 0 || svc.ID >= s.nextService || ids[svc.ID]:
			return fmt.Errorf("service %s has id %d, which cannot be", shown(svc.Name), svc.ID)
		case !s.vips.has(svc.VIP):
			return fmt.Errorf("service %s is on %s, which is no vip", shown(svc.Name), svc.VIP)
		}
		for i := 1; i < len(svc.Endpoints); i++ {
			if svc.Endpoints[i-1].Address.Compare(svc.Endpoints[i].Address) >= 0 {
				return fmt.Errorf("service %s has endpoints out of order", shown(svc.Name))
			}
		}
		ids[svc.ID] = true
		s.services.put(svc.Name, svc)
		s.frontends.put(frontendOf(svc), svc.Name)
	}
	return nil
}
