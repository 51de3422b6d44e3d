package fsm

import (
	"encoding/json"
	"errors"
	"fmt"
)

// snapshotVersion is the version of the snapshot's form; see commandVersion.
const snapshotVersion = 1

type snapshot struct {
	Version     int        `json:"v"`
	Index       uint64     `json:"index"`
	NextService uint32     `json:"next_service"`
	Cluster     Cluster    `json:"cluster"`
	Nodes       []Node     `json:"nodes"`
	Instances   []Instance `json:"instances"`
	VIPs        []VIP      `json:"vips"`
	Services    []Service  `json:"services"`
	Tokens      []Token    `json:"tokens"`
}

// Snapshot returns the state as bytes. Equal states give equal bytes. It may
// take long for a big state, and may run beside Apply.
func (s *State) Snapshot() ([]byte, error) {
	b, err := json.Marshal(snapshot{
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
	var probe struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(b, &probe); err != nil {
		return nil, refuse(ErrInvalid, "decode snapshot: %v", err)
	}
	if probe.Version > snapshotVersion {
		return nil, refuse(ErrUnsupported, "decode snapshot: it has version %d, and this program reads up to %d: upgrade this node", probe.Version, snapshotVersion)
	}
	if probe.Version < 1 {
		return nil, refuse(ErrInvalid, "decode snapshot: version %d never was", probe.Version)
	}
	var in snapshot
	if err := strict(b, &in); err != nil {
		return nil, refuse(ErrInvalid, "decode snapshot: %v", err)
	}
	s, err := fill(in)
	if err != nil {
		return nil, refuse(ErrInvalid, "decode snapshot: %v", err)
	}
	return s, nil
}

// fill builds the tables and checks that they fit together.
func fill(in snapshot) (*State, error) {
	s := empty()
	s.index, s.nextService, s.cluster = in.Index, in.NextService, in.Cluster
	for _, n := range in.Nodes {
		if s.nodes.has(n.Name) {
			return nil, fmt.Errorf("node %s is there twice", shown(n.Name))
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

func (s *State) fillServices(in snapshot) error {
	for _, v := range in.VIPs {
		if s.vips.has(v.Address) || !s.instances.has(v.Instance) {
			return fmt.Errorf("vip %s is there twice or in no instance", v.Address)
		}
		s.vips.put(v.Address, v)
	}
	ids := make(map[uint32]bool, len(in.Services))
	for _, svc := range in.Services {
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
