package node

import (
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/host"
	"pontoon/node/plan"
)

// route hands on what this node is to be towards its BGP neighbours by the plan at s,
// as far as its own view of itself lets it.
func (d *driver) route(s *fsm.State, p plan.Plan, view outlook) {
	me, _ := s.Node(d.self.Node)
	d.routed = view.allowed(p.Routes, me, d.routed)
	if !d.routesKnown && view.fresh {
		d.freshSince = earliest(d.freshSince, time.Now())
		whole := len(d.routed) == len(p.Routes) && !view.doubtful(me)
		d.routesKnown = routesSettled(whole, heardAll(d.m.syncPeers(s)), time.Since(d.freshSince), d.m.gate.grace)
	}
	d.m.routing.hand(speaking{
		config: bgpConfig(s, d.self.Node), known: d.routesKnown, routes: d.routed, withheld: p.Withheld,
		graceful: d.member && !me.Draining,
	})
}

// settleTime is how long a daemon that has just started waits for its own links, data plane and lease before its
// routes are final without what these hold back.
const settleTime = 5 * time.Second

// routesSettled says whether the neighbours may be told the routes for the first time,
// so long after the first fresh contact. Those that kept them over a restart of this
// daemon then drop what is missing (RFC 4724, section 4.2), and the first moments of a daemon
// miss everything: what is still to come must not cost the traffic that flows all the while. whole
// says that nothing is held back; caught that this process has heard of everybody's flows. Where a router
// went to another node while no daemon was here, connections were opened there: before it comes back, they have to be
// known here. For that a silent peer is waited for as long as it counts as in sync itself (grace).
func routesSettled(whole, caught bool, since, grace time.Duration) bool {
	return (whole || since >= settleTime) && (caught || since >= max(settleTime, grace))
}

// allUp says whether every link has a carrier.
func allUp(links []host.Link) bool {
	return !slices.ContainsFunc(links, func(l host.Link) bool { return !l.Up })
}
