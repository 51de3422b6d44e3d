package node

import (
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/node/plan"
)

func routeTo(a string, bound bool) plan.Route {
	addr := netip.MustParseAddr(a)
	return plan.Route{Prefix: netip.PrefixFrom(addr, addr.BitLen()), MED: 10, Bound: bound}
}

func prefixesOf(routes []plan.Route) []string {
	var out []string
	for _, r := range routes {
		out = append(out, r.Prefix.Addr().String())
	}
	return out
}

func TestWhatAMachineMayAnnounceBeforeTheClusterKnowsOfItsTrouble(t *testing.T) {
	const free, bound = "203.0.113.1", "203.0.113.2"
	routes := []plan.Route{routeTo(free, false), routeTo(bound, true)}
	routes[0].LocalPref, routes[0].Communities = 200, []uint32{7}
	well := outlook{ready: true, linksUp: true, quorum: true, fresh: true}
	is := func(change ...func(*outlook)) outlook {
		o := well
		for _, c := range change {
			c(&o)
		}
		return o
	}
	notReady := func(o *outlook) { o.ready = false }
	attached := func(o *outlook) { o.attached = true }
	linkDown := func(o *outlook) { o.linksUp = false }
	cutOff := func(o *outlook) { o.quorum = false }
	stale := func(o *outlook) { o.fresh = false }
	healthy := fsm.Node{Ready: true, LinksUp: true}
	for name, tc := range map[string]struct {
		o      outlook
		me     fsm.Node
		before []plan.Route
		want   []string
	}{
		"all is well":                      {well, healthy, nil, []string{free, bound}},
		"not ready":                        {is(notReady), healthy, routes, nil},
		"not ready, and kept all the same": {is(notReady), fsm.Node{LinksUp: true}, routes, []string{free, bound}},
		"behind the state, and forwards":   {is(notReady, attached), healthy, routes, []string{free, bound}},
		"that, and cut off":                {is(notReady, attached, cutOff), healthy, routes, []string{free}},
		"a link down":                      {is(linkDown), healthy, routes, nil},
		"a link down, and kept":            {is(linkDown), fsm.Node{Ready: true}, nil, []string{free, bound}},
		"a link down since, and kept for want of a data plane": {is(linkDown, notReady), fsm.Node{LinksUp: true}, routes, nil},
		"cut off":                  {is(cutOff, stale), healthy, routes, []string{free}},
		"cut off, and had nothing": {is(cutOff, stale), healthy, nil, nil},
		"not sure yet":             {is(stale), healthy, routes[:1], []string{free}},
		"not sure, and had both":   {is(stale), healthy, routes, []string{free, bound}},
	} {
		if got := prefixesOf(tc.o.allowed(routes, tc.me, tc.before)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	last := is(notReady, attached).allowed(routes, healthy, routes)
	if r := last[0]; r.MED != math.MaxUint32 || r.LocalPref != 0 || !slices.Equal(r.Communities, []uint32{0xffff0000, 7}) {
		t.Errorf("a node behind the state announces %+v", r)
	}
	if again := last[0].AsLastChoice(); !slices.Equal(again.Communities, last[0].Communities) {
		t.Errorf("said twice: %v", again.Communities)
	}
	if len(routes) != 2 || routes[0].MED != 10 || len(routes[0].Communities) != 1 || routes[1].Prefix.Addr().String() != bound {
		t.Error("the plan was written to")
	}
}

// stateWith applies more commands to a state.
func stateWith(t *testing.T, s *fsm.State, cmds ...fsm.Command) *fsm.State {
	t.Helper()
	for _, c := range cmds {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			t.Fatalf("%T: %v", c, err)
		}
		s = next
	}
	return s
}

func TestADrainedNodePartsForAWhile(t *testing.T) {
	var p partings
	s := takeUpState(t, false, 1) // lb1 is master, lb2 follows
	began := time.Unix(1000, 0)
	if got := p.step(s, "lb1", began); len(got) > 0 {
		t.Errorf("parting from %v although nothing happened", got)
	}
	s = stateWith(t, s, fsm.DrainNode{Node: "lb1", Draining: true})
	for after, want := range map[time.Duration]bool{0: true, partWait - 1: true, partWait: false, time.Hour: false} {
		q := partings{announcing: map[string]bool{fsm.DefaultInstance: true}}
		q.step(s, "lb1", began)
		if got := q.step(s, "lb1", began.Add(after)); got[fsm.DefaultInstance] != want {
			t.Errorf("%s after: %v", after, got)
		}
	}
	// Nobody parts who announced nothing before: a drained node whose daemon was started again.
	var anew partings
	if got := anew.step(s, "lb1", began); len(got) > 0 {
		t.Errorf("%v", got)
	}
	// Resumed meanwhile, and drained again: the time begins anew.
	p.step(s, "lb1", began)
	p.step(stateWith(t, s, fsm.DrainNode{Node: "lb1"}), "lb1", began.Add(partWait/2))
	p.step(s, "lb1", began.Add(partWait))
	if got := p.step(s, "lb1", began.Add(partWait*3/2)); !got[fsm.DefaultInstance] {
		t.Error("the time of the first drain counted on")
	}
}

// Whatever else takes its place away may keep the node from forwarding.
func TestOnlyADecisionLetsANodePart(t *testing.T) {
	for name, c := range map[string]fsm.Command{
		"dead":        fsm.NodeVerdict{Node: "lb1"},
		"not ready":   fsm.NodeReport{Node: "lb1", LinksUp: true, InSync: true},
		"link down":   fsm.NodeReport{Node: "lb1", Ready: true, InSync: true},
		"not in sync": fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true},
		"removed":     fsm.RemoveNode{Node: "lb1", Force: true},
	} {
		p := partings{announcing: map[string]bool{fsm.DefaultInstance: true}}
		if got := p.step(stateWith(t, takeUpState(t, false, 1), c), "lb1", time.Unix(1, 0)); len(got) > 0 {
			t.Errorf("%s: parting from %v", name, got)
		}
	}
	p := partings{announcing: map[string]bool{fsm.DefaultInstance: true}}
	moved := stateWith(t, takeUpState(t, false, 1), fsm.PutInstance{Name: fsm.DefaultInstance, AnnouncePolicy: fsm.PolicyMasterOnly},
		fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb2"})
	if got := p.step(moved, "lb1", time.Unix(1, 0)); !got[fsm.DefaultInstance] {
		t.Error("the old master of a move does not wait for the new one's route")
	}
}

func TestOnlyTheNewMasterMovesUpAtOnce(t *testing.T) {
	s := takeUpState(t, false, 1) // lb1 is master, lb2 follows
	hash, began := make([]byte, 32), time.Unix(1000, 0)
	s = stateWith(t, s,
		fsm.CreateToken{Token: fsm.Token{ID: "t3", Hash: hash, Role: fsm.RoleLB, Expires: t0.Add(time.Minute)}, Now: t0},
		fsm.JoinNode{TokenID: "t3", SecretHash: hash, Now: t0, Node: fsm.Node{
			Name: "lb3", Role: fsm.RoleLB, Address: "192.168.80.13:7400", GossipPort: 7401, Key: make([]byte, fsm.KeySize),
		}},
		fsm.NodeVerdict{Node: "lb3", Alive: true}, fsm.NodeReport{Node: "lb3", Ready: true, LinksUp: true, InSync: true},
		fsm.PutInstance{Name: fsm.DefaultInstance, Priorities: map[fsm.NodeID]int{"lb1": 3, "lb2": 2, "lb3": 1}})
	var second, third climbs
	shown := func(c *climbs, s *fsm.State, self fsm.NodeID, after time.Duration) int {
		return c.step(s, self, began.Add(after))[fsm.DefaultInstance]
	}
	if a, b := shown(&second, s, "lb2", 0), shown(&third, s, "lb3", 0); a != 1 || b != 2 {
		t.Fatalf("lb2 shows %d, lb3 %d", a, b)
	}
	gone := stateWith(t, s, fsm.NodeVerdict{Node: "lb1"})
	if got := shown(&second, gone, "lb2", 0); got != 0 {
		t.Errorf("the new master shows %d", got)
	}
	for after, want := range map[time.Duration]int{0: 2, climbWait - 1: 2, climbWait: 1, time.Hour: 1} {
		c := climbs{rows: map[string]climb{fsm.DefaultInstance: {shown: 2}}}
		shown(&c, gone, "lb3", 0)
		if got := shown(&c, gone, "lb3", after); got != want {
			t.Errorf("%s after, lb3 shows %d, want %d", after, got, want)
		}
	}
	// Back down at once, and up to the master's place at once although it was on its way up.
	shown(&third, gone, "lb3", 0)
	if got := shown(&third, s, "lb3", 1); got != 2 {
		t.Errorf("moved down, it shows %d", got)
	}
	shown(&third, gone, "lb3", 2)
	if got := shown(&third, stateWith(t, gone, fsm.NodeVerdict{Node: "lb2"}), "lb3", 3); got != 0 {
		t.Errorf("made master, it shows %d", got)
	}
	if got := third.step(s, "lb9", began); len(got) > 0 {
		t.Errorf("who has no place shows %v", got)
	}
}
