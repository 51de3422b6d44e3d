package plan

import (
	"pontoon/bpf"
	"pontoon/fsm"
)

// shareScale is by how much the weights of a service are multiplied while one of its endpoints gets
// a part of its weight only: of the weight 1, which is the usual one, there is no part.
const shareScale = 10

// health is what verdicts make of the endpoints of one service.
type health struct {
	open  bool // all that could take new flows are down, and are used all the same
	ramps bool // one of those that take new flows gets a part of its weight only
}

func (c *compiler) healthOf(s fsm.Service) health {
	if !s.Probe.Active() {
		return health{}
	}
	h := health{open: s.AllDown != fsm.AllDownClosed && c.state.AllEndpointsDown(s)}
	for _, e := range s.Endpoints {
		// One that was taken down amid its slow start is probed no more, so it would stay so for ever.
		h.ramps = h.ramps || state(e.Admin) == bpf.EndpointUp && e.Weight > 0 && c.state.Health(e.ID).Percent() < 100
	}
	return h
}

// apply gives an endpoint the state and the weight that follow from the verdict on it.
func (h health) apply(d *bpf.Endpoint, e fsm.Endpoint, v fsm.Verdict) {
	if v.Health == fsm.HealthDown && d.State != bpf.EndpointDown && !h.open {
		d.State = bpf.EndpointDead
	}
	d.Weight = e.Weight
	if h.ramps && e.Weight > 0 {
		d.Weight = uint16(max(1, int(e.Weight)*shareScale*v.Percent()/100))
	}
}
