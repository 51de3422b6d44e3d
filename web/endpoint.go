package web

import (
	"net/netip"
	"time"

	"pontoon/fsm"
)

// EndpointHealth is what the cluster has found out about an endpoint.
type EndpointHealth = fsm.Health

// The kinds of health.
const (
	EndpointUp      = fsm.HealthUp
	EndpointDown    = fsm.HealthDown
	EndpointUnknown = fsm.HealthUnknown // nothing probes it, or not for long enough yet
)

// EndpointStatus is one endpoint of a service with its runtime. What is replicated
// of it is filled in by the API, where Service.Endpoints is alike: ID, DrainUntil,
// Health, HealthSince, Flapping, Share and WhyOut, and HealthError while it is down.
type EndpointStatus struct {
	ID         uint32         `json:"id"`
	Address    netip.AddrPort `json:"address"`
	Weight     uint16         `json:"weight"`
	Admin      fsm.AdminState `json:"admin"`
	DrainUntil time.Time      `json:"drain_until,omitzero"`

	Health      EndpointHealth `json:"health" enum:"up,down,unknown" doc:"By the node that probes it. unknown: nothing probes it, or not for long enough yet; it counts as up."`
	HealthSince time.Time      `json:"health_since,omitzero" doc:"By the clock of the node that probes it. Absent while it is unknown."`
	HealthError string         `json:"health_error" doc:"What the last probe that failed found, in words; empty when none did lately."`
	Flapping    bool           `json:"flapping" doc:"It goes up and down so often that it has to be good for longer before it counts as up."`
	Share       int            `json:"share" doc:"Percent of its weight that it gets: less than 100 for a while after it came up, where the service has slow_start."`
	WhyOut      string         `json:"why_out" doc:"Why it takes no new flows, in words; empty when it does."`

	LatencyP50MS float64 `json:"latency_p50_ms" doc:"Of its last good probes, by the node that answers; 0 where that does not probe it."`
	LatencyP99MS float64 `json:"latency_p99_ms"`

	Flows          uint64  `json:"flows" doc:"Live flows to it that this node forwards."`
	DrainFlowsLeft uint64  `json:"drain_flows_left" doc:"While it drains: the flows that have not ended yet. 0 otherwise."`
	Traffic        Traffic `json:"traffic"`
}

// complete fills in what is replicated beyond what a backend repeats.
func (s *ServiceStatus) complete(state *fsm.State) {
	uses := state.Uses(s.Service)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Share = 100
		if i >= len(uses) || s.Service.Endpoints[i].Address != e.Address {
			continue
		}
		configured := s.Service.Endpoints[i]
		e.ID, e.DrainUntil, e.WhyOut = configured.ID, configured.DrainUntil, uses[i].Why
		e.judge(state.Health(e.ID))
	}
}

// judge takes over a verdict of the cluster.
func (e *EndpointStatus) judge(v fsm.Verdict) {
	if v.Health == fsm.HealthUnknown {
		return
	}
	e.Health, e.HealthSince, e.Flapping, e.Share = v.Health, v.Since, v.Flapping, v.Percent()
	if v.Health == fsm.HealthDown {
		e.HealthError = v.Why
	}
}

// candidate says whether an endpoint would take new flows if it were up.
func (e EndpointStatus) candidate() bool { return e.Admin == fsm.AdminUp && e.Weight > 0 }
