package node

import (
	"slices"

	"pontoon/fsm"
	"pontoon/node/host"
	"pontoon/node/plan"
)

// route hands on what this node is to be towards its BGP neighbours by the plan at s,
// as far as its own view of itself lets it.
func (d *driver) route(s *fsm.State, p plan.Plan, view outlook) {
	me, _ := s.Node(d.self.Node)
	d.routed = view.allowed(p.Routes, me, d.routed)
	d.routesKnown = d.routesKnown || view.fresh
	d.m.routing.hand(speaking{
		config: bgpConfig(s, d.self.Node), known: d.routesKnown, routes: d.routed, withheld: p.Withheld,
		graceful: d.member && !me.Draining,
	})
}

// allUp says whether every link has a carrier.
func allUp(links []host.Link) bool {
	return !slices.ContainsFunc(links, func(l host.Link) bool { return !l.Up })
}
