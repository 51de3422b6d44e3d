package node

import (
	"fmt"
	"net/netip"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/health"
)

// What a node probes follows from the state alone, and is decided here.

// restingFactor is by how much seldomer a node probes what another one judges: often enough to know
// something when it has to take over.
const restingFactor = 5

// probeFactors says for each instance by what the interval of its probes is multiplied on a node; what
// is not named it does not probe. The prober of an instance probes at the full rate, whatever else is
// said of it. Of the others witnesses have no way to the endpoints, and who drains is about to leave.
func probeFactors(s *fsm.State, self fsm.NodeID) map[string]uint8 {
	me, ok := s.Node(self)
	if !ok || me.Role != fsm.RoleLB {
		return nil
	}
	out := map[string]uint8{}
	for _, in := range s.Instances() {
		if prober, _ := s.Prober(in.Name); prober == self {
			out[in.Name] = 1
		} else if !me.Draining {
			out[in.Name] = restingFactor
		}
	}
	return out
}

// probeTargets are the endpoints that a node probes, with what is known of them. One that the operator
// has taken down is not asked: whatever is done to it is no news. problems says what cannot be probed.
func probeTargets(s *fsm.State, factors map[string]uint8) (targets []health.Target, problems []error) {
	if len(factors) == 0 {
		return nil, nil
	}
	for _, svc := range s.Services() {
		factor := factors[instanceFor(s, svc)]
		if factor == 0 || !svc.Probe.Active() {
			continue
		}
		probe, err := healthProbe(svc.Probe)
		if err != nil {
			problems = append(problems, fmt.Errorf("service %s: %w", svc.Name, err))
			continue
		}
		for _, e := range svc.Endpoints {
			if e.Admin == fsm.AdminDown {
				continue
			}
			targets = append(targets, health.Target{
				Key: e.ID, Addr: e.Address, VIP: netip.AddrPortFrom(svc.VIP, svc.Port), Tunnel: svc.Tunnel == fsm.TunnelIPIP,
				Probe: probe, Factor: factor, Start: startOf(s.Health(e.ID)),
			})
		}
	}
	return targets, problems
}

// instanceFor is that of a service's VIP.
func instanceFor(s *fsm.State, svc fsm.Service) string {
	if v, ok := s.VIP(svc.VIP); ok {
		return v.Instance
	}
	return fsm.DefaultInstance
}

func startOf(v fsm.Verdict) health.Health {
	switch v.Health {
	case fsm.HealthUp:
		return health.Up
	case fsm.HealthDown:
		return health.Down
	}
	return health.Unknown
}

// healthProbe is a probe of the configuration as the prober takes it.
func healthProbe(p fsm.Probe) (health.Probe, error) {
	kind, err := health.ParseType(string(p.Type))
	if err != nil {
		return health.Probe{}, err
	}
	send, err := p.Payload()
	if err != nil {
		return health.Probe{}, err
	}
	out := health.Probe{
		Type: kind, Port: p.Port, Interval: time.Duration(p.Interval), Timeout: time.Duration(p.Timeout),
		Rise: p.Rise, Fall: p.Fall, Source: p.Source, ThroughVIP: p.ThroughVIP,
		Method: p.Method, Path: p.Path, Host: p.Host, Expect: p.Expect, Body: p.Body, Send: string(send),
		TLS: p.TLS, TLSVerify: p.TLSVerify, ServerName: p.ServerName, GRPCService: p.GRPCService,
	}
	return out, out.Validate()
}

// findings are the endpoints of the instances that self is the prober of, by service and address. base is
// how many probes of each had been begun when it became that, of those of which that is not long ago.
func findings(s *fsm.State, factors map[string]uint8, results map[uint32]health.Result, base map[uint32]uint64) []finding {
	var out []finding
	for _, svc := range s.Services() {
		instance := instanceFor(s, svc)
		if factors[instance] != 1 || !svc.Probe.Active() {
			continue
		}
		for _, e := range svc.Endpoints {
			r, ok := results[e.ID]
			if !ok {
				continue
			}
			own := r.Probes
			if began, recent := base[e.ID]; recent {
				own = min(r.Row, r.Probes-min(began, r.Probes))
			}
			committed := s.Health(e.ID)
			known := ownResult(r, svc.Probe, committed, own)
			out = append(out, finding{
				service: svc.Name, instance: instance, slowStart: time.Duration(svc.SlowStart), committed: committed,
				known: known, early: !known && r.Health != health.Unknown, up: r.Up, flapping: r.Flapping,
				failing: !r.At.IsZero() && !r.Passed, since: r.Since, why: r.Why,
				probed: r.At, span: time.Duration(svc.Probe.Interval) * time.Duration(svc.Probe.Fall),
			})
		}
	}
	return out
}

// ownResult says whether a result is this node's to tell. own is how many probes in a row, up to the last, it has begun as
// prober and seen end alike; of one that is prober for long, all it has seen. A result that agrees with what is committed may be told. One
// that does not may be old, from the time when this node probed seldom, or what kept it from becoming prober earlier: it
// has to be found again, by as many probes as it takes to rise or fall. It is not, if the last ones say the opposite.
func ownResult(r health.Result, p fsm.Probe, committed fsm.Verdict, own uint64) bool {
	switch {
	case r.Health == health.Unknown:
		return false
	case committed.Health == fsm.HealthUnknown, r.Up == (committed.Health == fsm.HealthUp):
		return true
	case r.Up:
		return own >= uint64(p.Rise) && r.Passed
	}
	return own >= uint64(p.Fall) && !r.Passed
}

// slotPorts are the ports that the data plane of a slot gives to connections whose source is an address of
// the node (bpf/DESIGN.md, section 4); 0 and 0 for none.
func slotPorts(slot uint8) (first, last uint16) {
	const lowest, each = 1024, (1<<16 - 1024) / bpf.Slots
	if slot >= bpf.Slots {
		return 0, 0
	}
	first = lowest + uint16(slot)*each
	return first, first + (each - 1)
}
