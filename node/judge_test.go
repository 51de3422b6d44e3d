package node

import (
	"slices"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

var t0 = time.Unix(1000, 0)

func lb(name string, alive bool) fsm.Node {
	return fsm.Node{Name: fsm.NodeID(name), Role: fsm.RoleLB, Alive: alive}
}

func seen(name string, s transport.GossipState) transport.GossipMember {
	return transport.GossipMember{Node: name, State: s}
}

// judgeStep is one moment of a judge's day.
type judgeStep struct {
	at     time.Duration
	gossip transport.GossipState // of lb2; "" is not listed
	host   *bool                 // a host check answers before the step
	dead   bool                  // a verdict of death is expected
	check  bool                  // a host check is expected to be asked for
}

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

func TestJudgeTellsDeadMachinesFromStoppedDaemons(t *testing.T) {
	const grace = 10 * time.Second
	ms := time.Millisecond
	for _, tc := range []struct {
		name  string
		steps []judgeStep
	}{
		{"a heard node is left alone", []judgeStep{
			{at: 0, gossip: transport.GossipAlive},
			{at: time.Minute, gossip: transport.GossipAlive},
		}},
		{"a dead machine is dead as soon as gossip and its kernel are silent", []judgeStep{
			{at: 0, gossip: transport.GossipAlive},
			{at: 100 * ms, gossip: transport.GossipSuspect, check: true},
			{at: 300 * ms, gossip: transport.GossipSuspect, host: no()},
			{at: 500 * ms, gossip: transport.GossipDead, dead: true},
		}},
		{"suspicion alone is never death", []judgeStep{
			{at: 0, gossip: transport.GossipSuspect, check: true},
			{at: 200 * ms, gossip: transport.GossipSuspect, host: no()},
			{at: 210 * ms, gossip: transport.GossipSuspect},
			{at: time.Minute, gossip: transport.GossipSuspect, check: true},
		}},
		{"a stopped daemon gets its grace", []judgeStep{
			{at: 0, gossip: transport.GossipDead, check: true},
			{at: 100 * ms, gossip: transport.GossipDead, host: yes()},
			{at: 9900 * ms, gossip: transport.GossipDead, check: true},
			{at: 10 * time.Second, gossip: transport.GossipDead, host: yes(), dead: true},
		}},
		{"a daemon that comes back within its grace loses nothing", []judgeStep{
			{at: 0, gossip: transport.GossipDead, check: true},
			{at: 100 * ms, gossip: transport.GossipDead, host: yes()},
			{at: 5 * time.Second, gossip: transport.GossipAlive},
			{at: 6 * time.Second, gossip: transport.GossipDead, check: true},
			{at: 6100 * ms, gossip: transport.GossipDead, host: yes()},
			{at: 11 * time.Second, gossip: transport.GossipDead, check: true},
			{at: 11100 * ms, gossip: transport.GossipDead, host: yes()},
		}},
		{"a machine that dies after its daemon is dead at once", []judgeStep{
			{at: 0, gossip: transport.GossipDead, check: true},
			{at: 100 * ms, gossip: transport.GossipDead, host: yes()},
			{at: 2 * time.Second, gossip: transport.GossipDead, check: true},
			{at: 2200 * ms, gossip: transport.GossipDead, host: no(), dead: true},
		}},
		{"an old answer about the kernel is not believed", []judgeStep{
			{at: 0, gossip: transport.GossipSuspect, check: true},
			{at: 100 * ms, gossip: transport.GossipSuspect, host: no()},
			{at: 2 * time.Second, gossip: transport.GossipDead, check: true},
		}},
		{"a node never seen is waited for", []judgeStep{
			{at: 0},
			{at: 2900 * ms},
			{at: 3 * time.Second, check: true},
			{at: 3200 * ms, host: no(), dead: true},
		}},
		{"a node that left gossip without leaving the cluster is silent", []judgeStep{
			{at: 0, gossip: transport.GossipLeft, check: true},
			{at: 100 * ms, gossip: transport.GossipLeft, host: no(), dead: true},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			j := newJudge(grace, nil, t0)
			nodes := []fsm.Node{lb("lb1", true), lb("lb2", true)}
			for i, s := range tc.steps {
				now := t0.Add(s.at)
				if s.host != nil {
					j = j.hostAnswered("lb2", *s.host, now)
				}
				var members []transport.GossipMember
				if s.gossip != "" {
					members = append(members, seen("lb2", s.gossip))
				}
				var r rulings
				j, r = j.step(nodes, "lb1", members, nil, now)
				if dead := len(r.verdicts) == 1 && !r.verdicts[0].Alive && r.verdicts[0].Node == "lb2"; dead != s.dead {
					t.Errorf("step %d at %s: verdicts %v, want death %v", i, s.at, r.verdicts, s.dead)
				}
				if check := len(r.check) == 1; check != s.check {
					t.Errorf("step %d at %s: host checks %v, want one %v", i, s.at, r.check, s.check)
				}
			}
		})
	}
}

func TestJudgeRevivesWhoIsHeard(t *testing.T) {
	j := newJudge(time.Second, nil, t0)
	_, r := j.step([]fsm.Node{lb("lb1", false), lb("lb2", false), lb("lb3", false)}, "lb1",
		[]transport.GossipMember{seen("lb2", transport.GossipAlive), seen("lb3", transport.GossipDead)}, nil, t0.Add(time.Hour))
	want := map[fsm.NodeID]bool{"lb1": true, "lb2": true}
	if len(r.verdicts) != len(want) {
		t.Fatalf("verdicts %v, want lb1 (itself) and lb2 (heard)", r.verdicts)
	}
	for _, v := range r.verdicts {
		if !v.Alive || !want[v.Node] {
			t.Errorf("unexpected verdict %+v", v)
		}
	}
}

func TestJudgeForgetsAnAnswerAboutANodeThatWasHeardAgain(t *testing.T) {
	j := newJudge(time.Second, nil, t0)
	nodes := []fsm.Node{lb("lb1", true), lb("lb2", true)}
	j, _ = j.step(nodes, "lb1", []transport.GossipMember{seen("lb2", transport.GossipDead)}, nil, t0)
	j, _ = j.step(nodes, "lb1", []transport.GossipMember{seen("lb2", transport.GossipAlive)}, nil, t0.Add(time.Millisecond))
	j = j.hostAnswered("lb2", false, t0.Add(2*time.Millisecond))
	if len(j.doubted()) != 0 {
		t.Fatalf("still doubts %v", j.doubted())
	}
}

func TestJudgeGivesNoNewGraceWhenTheLeaderChanges(t *testing.T) {
	j := newJudge(10*time.Second, map[string]time.Time{"lb2": t0.Add(-9 * time.Second)}, t0)
	nodes := []fsm.Node{lb("lb1", true), lb("lb2", true)}
	gossip := []transport.GossipMember{seen("lb2", transport.GossipDead)}
	j, _ = j.step(nodes, "lb1", gossip, nil, t0)
	j = j.hostAnswered("lb2", true, t0.Add(900*time.Millisecond))
	_, r := j.step(nodes, "lb1", gossip, nil, t0.Add(time.Second))
	if len(r.verdicts) != 1 || r.verdicts[0].Alive {
		t.Fatalf("verdicts %v: lb2 has been silent for its ten seconds", r.verdicts)
	}
}

// Echoes are faster than gossip, so who is lost to a majority is dead although gossip still
// vouches for it, and is not called alive again before its data plane is heard.
func TestJudgeBelievesAMajorityThatHasLostANode(t *testing.T) {
	nodes := func(alive bool) []fsm.Node { return []fsm.Node{lb("lb1", true), lb("lb2", alive), lb("lb3", true)} }
	gossip := []transport.GossipMember{seen("lb2", transport.GossipAlive), seen("lb3", transport.GossipAlive)}
	for _, tc := range []struct {
		name  string
		alive bool
		lost  int
		want  []bool // verdicts about lb2
	}{
		{"nobody has lost it", true, 0, nil},
		{"one of three has lost it", true, 1, nil},
		{"two of three have", true, 2, []bool{false}},
		{"it is known", false, 2, nil},
		{"it is heard again", false, 0, []bool{true}},
		{"all but one hear it again", false, 1, []bool{true}},
	} {
		j := newJudge(time.Minute, nil, t0)
		_, r := j.step(nodes(tc.alive), "lb1", gossip, map[fsm.NodeID]int{"lb2": tc.lost}, t0)
		var got []bool
		for _, v := range r.verdicts {
			if v.Node == "lb2" {
				got = append(got, v.Alive)
			}
		}
		if !slices.Equal(got, tc.want) || len(r.check) > 0 {
			t.Errorf("%s: verdicts %v, checks %v", tc.name, got, r.check)
		}
	}
}

// A witness answers by its daemon only, which may be starved: gossip has to miss it as well.
func TestJudgeAsksGossipAboutAWitness(t *testing.T) {
	w := fsm.Node{Name: "w1", Role: fsm.RoleWitness, Alive: true}
	nodes := []fsm.Node{lb("lb1", true), lb("lb2", true), w}
	for state, dead := range map[transport.GossipState]bool{
		transport.GossipAlive: false, transport.GossipSuspect: true, transport.GossipDead: true, transport.GossipLeft: true,
	} {
		_, r := newJudge(time.Minute, nil, t0).step(nodes, "lb1", []transport.GossipMember{seen("lb2", transport.GossipAlive), seen("w1", state)},
			map[fsm.NodeID]int{"w1": 2}, t0)
		if got := len(r.verdicts) == 1 && r.verdicts[0].Node == "w1" && !r.verdicts[0].Alive; got != dead {
			t.Errorf("gossip says %v: verdicts %v", state, r.verdicts)
		}
	}
}

// Two of five die at once: both are found in one step, by the three that are left.
func TestJudgeFindsTwoDeathsAtOnce(t *testing.T) {
	var nodes []fsm.Node
	var gossip []transport.GossipMember
	for _, n := range []string{"lb1", "lb2", "lb3", "lb4", "lb5"} {
		nodes = append(nodes, lb(n, true))
		gossip = append(gossip, seen(n, transport.GossipAlive))
	}
	_, r := newJudge(time.Minute, nil, t0).step(nodes, "lb1", gossip, map[fsm.NodeID]int{"lb4": 3, "lb5": 3}, t0)
	if len(r.verdicts) != 2 || r.verdicts[0].Alive || r.verdicts[1].Alive {
		t.Fatalf("verdicts %v", r.verdicts)
	}
	_, r = newJudge(time.Minute, nil, t0).step(nodes, "lb1", gossip, map[fsm.NodeID]int{"lb4": 2, "lb5": 2}, t0)
	if len(r.verdicts) != 0 {
		t.Fatalf("two of five are no majority: %v", r.verdicts)
	}
}
