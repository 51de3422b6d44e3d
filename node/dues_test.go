package node

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

// balancers is a healthy cluster of n nodes, lb1 and so on.
func balancers(t *testing.T, n int) *fsm.State {
	t.Helper()
	cmds := oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true})
	for i := 2; i <= n; i++ {
		name, hash := fsm.NodeID(fmt.Sprintf("lb%d", i)), bytes.Repeat([]byte{byte(i)}, 32)
		cmds = append(
			cmds,
			fsm.CreateToken{Token: fsm.Token{ID: fmt.Sprintf("t%d", i), Hash: hash, Role: fsm.RoleLB, Expires: t0.Add(time.Minute)}, Now: t0},
			fsm.JoinNode{TokenID: fmt.Sprintf("t%d", i), SecretHash: hash, Now: t0, Node: fsm.Node{
				Name: name, Role: fsm.RoleLB, Address: fmt.Sprintf("192.0.2.%d:7400", i), GossipPort: 7401, Key: bytes.Repeat([]byte{byte(i)}, fsm.KeySize),
			}},
			fsm.NodeVerdict{Node: name, Alive: true},
			fsm.NodeReport{Node: name, Ready: true, LinksUp: true, InSync: true},
		)
	}
	_, s := history(t, cmds...)
	return s
}

// commits applies what is due and returns the states that it goes through.
func commits(t *testing.T, s *fsm.State, d dues) []*fsm.State {
	t.Helper()
	cmd := d.command()
	if cmd == nil {
		return nil
	}
	next, err := s.Apply(s.Index()+1, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return []*fsm.State{next}
}

func instanceOf(t *testing.T, s *fsm.State) fsm.Instance {
	t.Helper()
	in, ok := s.Instance(fsm.DefaultInstance)
	if !ok {
		t.Fatal("there is no default instance")
	}
	return in
}

// Who dies together with the master inherits nothing, not for a moment.
func TestNoInstanceGoesToANodeThatDiesInTheSameVerdict(t *testing.T) {
	s := balancers(t, 5)
	order := instanceOf(t, s).Succession
	master, heir, third := order[0], order[1], order[2]
	var gossip []transport.GossipMember
	for _, n := range s.Nodes() {
		gossip = append(gossip, seen(string(n.Name), transport.GossipAlive))
	}
	_, r := newJudge(time.Minute, nil, t0).step(s.Nodes(), order[4], gossip, map[fsm.NodeID]int{master: 3, heir: 3}, t0)
	states := commits(t, s, duesOf(r.verdicts, nil))
	if len(states) != 1 {
		t.Fatalf("%d entries, want one: %+v", len(states), r.verdicts)
	}
	next := states[0]
	for _, n := range []fsm.NodeID{master, heir} {
		if is, _ := next.Node(n); is.Alive || is.Died != next.Index() {
			t.Errorf("%s: %+v", n, is)
		}
	}
	if in := instanceOf(t, next); in.Master != third || in.Epoch != next.Index() || slices.Contains(in.Succession, heir) {
		t.Errorf("after the death of %s and %s: %+v, want %s", master, heir, in.Assignment, third)
	}
}

// The same when the heir lives and has said that it cannot serve.
func TestNoInstanceGoesToANodeThatHasJustSaidNo(t *testing.T) {
	s := balancers(t, 3)
	order := instanceOf(t, s).Succession
	no := agedReport{report: report{Node: string(order[1]), State: s.Index(), Ready: true, LinksUp: false, InSync: true}}
	d := duesOf([]fsm.NodeVerdict{{Node: order[0]}}, dueReports(s, []agedReport{no}))
	states := commits(t, s, d)
	if len(states) != 1 {
		t.Fatalf("%+v", d)
	}
	if in := instanceOf(t, states[0]); in.Master != order[2] || len(in.Succession) != 1 {
		t.Errorf("%+v, want %s alone", in.Assignment, order[2])
	}
}

func TestDues(t *testing.T) {
	dead, alive := fsm.NodeVerdict{Node: "lb2", Reason: "lost"}, fsm.NodeVerdict{Node: "lb3", Alive: true}
	for _, tc := range []struct {
		name     string
		verdicts []fsm.NodeVerdict
		reports  []fsm.NodeReport
		want     []fsm.Command
	}{
		{"nothing", nil, nil, nil},
		{"one verdict stands alone", []fsm.NodeVerdict{dead}, nil, []fsm.Command{dead}},
		{"one report stands alone", nil, []fsm.NodeReport{{Node: "lb1"}}, []fsm.Command{fsm.NodeReport{Node: "lb1"}}},
		{"a verdict twice", []fsm.NodeVerdict{dead, {Node: "lb2", Reason: "reborn"}}, nil, []fsm.Command{dead}},
		{"a report of who is judged waits", []fsm.NodeVerdict{dead, alive}, []fsm.NodeReport{{Node: "lb2"}, {Node: "lb1"}}, []fsm.Command{dead, alive, fsm.NodeReport{Node: "lb1"}}},
	} {
		var got []fsm.Command
		switch cmd := duesOf(tc.verdicts, tc.reports).command().(type) {
		case nil:
		case fsm.Batch:
			got = cmd.Commands
		default:
			got = []fsm.Command{cmd}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// Several decisions in one entry: each instance's timeline is that of its old master.
func TestEachTimelineIsAboutItsOwnMaster(t *testing.T) {
	var d decisions
	lost := d.ofDeath("lb2", lossTimes{lastGood: after(0), noticed: after(60), by: 2}, 2, after(0), after(80))
	silent := d.ofDeath("lb3", lossTimes{}, 2, after(-9000), after(80))
	said := decision{cause: fsm.CauseReport, of: "lb4", began: after(75), confirmed: after(80)}
	d.put(9, lost, silent, said)
	half := halfOf(d.get(9))
	for from, want := range map[fsm.NodeID]fsm.FailoverCause{"lb2": fsm.CauseLost, "lb3": fsm.CauseSilent, "lb4": fsm.CauseReport, "lb5": fsm.CauseLost} {
		if got := half.about(from); got.Cause != want {
			t.Errorf("from %s: %s, want %s", from, got.Cause, want)
		}
	}
	if p := half.about("lb2").Parts; p.Detected != 60 || p.Confirmed != 80 {
		t.Errorf("%+v", p)
	}
	if p := half.about("lb3").Parts; p.Detected != 0 || p.Confirmed != 9080 {
		t.Errorf("%+v", p)
	}
}
