package node

import (
	"net/netip"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/plan"
)

// What a node may announce by BGP follows from the committed state (plan.Routes) and
// from what it knows of itself before the cluster does. Both are decided here, from
// values alone.

// partWait is how long a node goes on announcing as the last choice what it is to
// announce no more by decision: long enough for the neighbours to have taken
// another path, and for their neighbours, before this one goes.
const partWait = 5 * time.Second

// partings knows of which instances this node is about to cease announcing VIPs.
// The zero value is that of a node that announces nothing.
type partings struct {
	announcing map[string]bool      // by the state of the last step
	since      map[string]time.Time // the others it may go on with
}

// step takes in the state at now, and returns the instances whose VIPs self may yet
// announce as the last choice.
func (p *partings) step(s *fsm.State, self fsm.NodeID, now time.Time) map[string]bool {
	is := plan.Announcing(s, self)
	if p.since == nil {
		p.since = map[string]time.Time{}
	}
	for instance := range p.announcing {
		if !is[instance] {
			p.since[instance] = now
		}
	}
	p.announcing = is
	var out map[string]bool
	for instance, since := range p.since {
		if is[instance] || now.Sub(since) >= partWait || !plan.MayPart(s, self, instance) {
			delete(p.since, instance)
			continue
		}
		if out == nil {
			out = map[string]bool{}
		}
		out[instance] = true
	}
	return out
}

// climbWait is how long a backup that moves up in the succession shows its old place.
// When a master goes, every node behind it moves up at once; would a router hear of
// the third before it hears of the second, both would look alike to it for a moment,
// and it could go to the third and come back.
const climbWait = 500 * time.Millisecond

// climbs knows which places in successions this node shows. The zero value is that of
// a node that has shown none.
type climbs struct {
	rows map[string]climb // by instance
}

type climb struct {
	shown int
	since time.Time // when it got a better one; zero: it has not
}

// step takes in the state at now, and returns the places to show, by instance.
func (c *climbs) step(s *fsm.State, self fsm.NodeID, now time.Time) map[string]int {
	rows, out := map[string]climb{}, map[string]int{}
	for _, in := range s.Instances() {
		rank := slices.Index(in.Succession, self)
		if rank < 0 {
			continue
		}
		row, known := c.rows[in.Name]
		switch {
		case !known || rank == 0 || rank >= row.shown:
			row = climb{shown: rank}
		case row.since.IsZero():
			row.since = now
		case now.Sub(row.since) >= climbWait:
			row = climb{shown: rank}
		}
		rows[in.Name], out[in.Name] = row, row.shown
	}
	c.rows = rows
	return out
}

// outlook is what this machine itself knows of whether its routes lead anywhere.
type outlook struct {
	ready    bool // the data plane does what the state says
	attached bool // it forwards, if by an older state
	linksUp  bool
	quorum   bool // the lease is valid, or ended only just now
	fresh    bool // it may take something up
}

// doubtful says that the data plane does not do what the state says, and that the
// cluster does not know it yet.
func (o outlook) doubtful(me fsm.Node) bool { return !o.ready && me.Ready }

// leaseGrace is for how long a lease that is over is not believed to be: most come
// back with the next answer, and to withdraw a route and announce it again moves
// every connection twice. lease is its length.
func leaseGrace(lease time.Duration) time.Duration { return lease / 2 }

// allowed picks from the routes of a plan those that this machine may announce.
//
// What is wrong with it and not known to the cluster yet takes all of them back at
// once: others announce them, too. A data plane that forwards and could not be given
// the newest state makes them the last choice: that may have befallen all nodes at the
// same moment, and would all take them back, the addresses would be gone for everybody.
// Once the cluster knows, it has decided, and has kept this node in its place only if
// nobody else could do better. me is the node as the cluster knows it; before is what
// was announced.
func (o outlook) allowed(routes []plan.Route, me fsm.Node, before []plan.Route) []plan.Route {
	doubtful := o.doubtful(me)
	if doubtful && !o.attached || !o.linksUp && me.LinksUp {
		return nil
	}
	if o.fresh && o.quorum && !doubtful {
		return routes
	}
	had := make(map[netip.Prefix]bool, len(before))
	for _, r := range before {
		had[r.Prefix] = true
	}
	out := slices.DeleteFunc(slices.Clone(routes), func(r plan.Route) bool {
		return !o.fresh && !had[r.Prefix] || !o.quorum && r.Bound
	})
	for i := range out {
		if doubtful {
			out[i] = out[i].AsLastChoice()
		}
	}
	return out
}
