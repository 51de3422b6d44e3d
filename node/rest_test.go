package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/transport"
)

// The grace is over, and the kernel of the silent daemon answers still: another master would answer beside it.
func TestJudgeWaitsForALeaseThatIsLongerThanTheGrace(t *testing.T) {
	nodes := []fsm.Node{lb("lb1", true), lb("lb2", true)}
	gossip := []transport.GossipMember{seen("lb2", transport.GossipDead)}
	for _, tc := range []struct {
		name      string
		answering time.Time // of lb2; zero is not known
		at        time.Duration
		dead      bool
	}{
		{"nothing is known of its lease", time.Time{}, 3 * time.Second, true},
		{"its lease is over", t0.Add(time.Second), 3 * time.Second, true},
		{"it rests", t0.Add(5 * time.Second), 3 * time.Second, false},
		{"it has rested", t0.Add(5 * time.Second), 5 * time.Second, true},
		{"it rests no longer than the grace", t0.Add(5 * time.Second), 2 * time.Second, false},
	} {
		j := newJudge(3*time.Second, map[string]time.Time{"lb2": t0}, t0)
		j, _ = j.step(nodes, "lb1", gossip, nil, t0)
		j = j.hostAnswered("lb2", true, t0.Add(tc.at-100*time.Millisecond))
		if !tc.answering.IsZero() {
			j.words = map[fsm.NodeID]word{"lb2": {answering: tc.answering}}
		}
		if _, r := j.step(nodes, "lb1", gossip, nil, t0.Add(tc.at)); (len(r.verdicts) == 1) != tc.dead {
			t.Errorf("%s: verdicts %v", tc.name, r.verdicts)
		}
	}
	// A machine that is gone answers nobody.
	j := newJudge(3*time.Second, map[string]time.Time{"lb2": t0}, t0)
	j.words = map[fsm.NodeID]word{"lb2": {answering: t0.Add(time.Hour)}}
	if _, r := j.step(nodes, "lb1", gossip, map[fsm.NodeID]int{"lb2": 2}, t0); len(r.verdicts) != 1 {
		t.Errorf("a machine that is gone: %v", r.verdicts)
	}
	j, _ = j.step(nodes, "lb1", gossip, nil, t0)
	j.words = map[fsm.NodeID]word{"lb2": {answering: t0.Add(time.Hour)}}
	j = j.hostAnswered("lb2", false, t0)
	if _, r := j.step(nodes, "lb1", gossip, nil, t0); len(r.verdicts) != 1 {
		t.Errorf("a kernel that is gone: %v", r.verdicts)
	}
}

// A daemon that was started again is heard by its reports before gossip has found it; its grace must not run out meanwhile.
func TestJudgeTakesAReportForALife(t *testing.T) {
	nodes := []fsm.Node{lb("lb1", true), lb("lb2", true)}
	gossip := []transport.GossipMember{seen("lb2", transport.GossipDead)}
	j := newJudge(3*time.Second, map[string]time.Time{"lb2": t0}, t0)
	for at := time.Duration(0); at < 10*time.Second; at += 250 * time.Millisecond {
		// It died before t0, is back from 2 s on, and dies for good at 6 s.
		heard := t0.Add(min(max(at, 2*time.Second), 6*time.Second))
		if at < 2*time.Second {
			heard = t0.Add(-time.Second)
		}
		j.words = map[fsm.NodeID]word{"lb2": {heard: heard}}
		next, r := j.step(nodes, "lb1", gossip, nil, t0.Add(at))
		j = next.hostAnswered("lb2", true, t0.Add(at))
		if dead := len(r.verdicts) > 0; dead != (at >= 9*time.Second) {
			t.Errorf("after %s: verdicts %v", at, r.verdicts)
		}
	}
}

func TestWhoRestsIsKnownUntilItIsBackOrOver(t *testing.T) {
	table := newReportTable()
	table.put(report{Node: "lb1", LeaseMS: 5000, Rests: true}, after(0))
	table.put(report{Node: "lb2", LeaseMS: 1000}, after(0))
	table.put(report{Node: "w1"}, after(0))
	if got := table.resting(after(10)); len(got) != 1 || got["lb1"] != after(5000) {
		t.Errorf("%v", got)
	}
	if got := table.words(); len(got) != 3 || got["lb2"] != (word{after(0), after(1000)}) || got["w1"] != (word{after(0), after(0)}) {
		t.Errorf("%v", got)
	}
	// What another node was told of it counts from then.
	other := newReportTable()
	other.replace(table.all(after(100), func(string) bool { return true }), "lb3", after(7100))
	if got := other.resting(after(7200)); got["lb1"] != after(12000) {
		t.Errorf("%v", got)
	}
	if got := table.resting(after(5000)); len(got) != 0 {
		t.Errorf("it is over: %v", got)
	}
	table.put(report{Node: "lb1", LeaseMS: 4000}, after(1000))
	if got := table.resting(after(1010)); len(got) != 0 {
		t.Errorf("it is back: %v", got)
	}
}

func TestOnlyAChangeThatTakesVIPsFromWhoRestsWaits(t *testing.T) {
	s := balancers(t, 3)
	order := instanceOf(t, s).Succession
	resting := map[fsm.NodeID]time.Time{order[0]: after(5000)}
	for _, tc := range []struct {
		name string
		cmd  fsm.Command
		want fsm.NodeID
	}{
		{"a move", fsm.MoveInstance{Name: fsm.DefaultInstance, To: order[1]}, order[0]},
		{"a move to where it is", fsm.MoveInstance{Name: fsm.DefaultInstance, To: order[0]}, ""},
		{"a drain", fsm.DrainNode{Node: order[0], Draining: true}, order[0]},
		{"a removal", fsm.RemoveNode{Node: order[0], Force: true}, order[0]},
		{"the drain of another one", fsm.DrainNode{Node: order[1], Draining: true}, ""},
		{"something in a batch", fsm.Batch{Commands: []fsm.Command{fsm.DrainNode{Node: order[0], Draining: true}}}, order[0]},
		{"a VIP", fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, ""},
		{"what is refused in any case", fsm.MoveInstance{Name: "none", To: order[1]}, ""},
	} {
		if got := takenFrom(s, tc.cmd, resting); got != tc.want {
			t.Errorf("%s: taken from %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := takenFrom(s, fsm.DrainNode{Node: order[0], Draining: true}, map[fsm.NodeID]time.Time{order[2]: after(5000)}); got != "" {
		t.Errorf("who rests is master of nothing, and it is taken from %q", got)
	}
}

func TestRestingSurvivesTheWayBetweenNodes(t *testing.T) {
	err := errorOf(kindOf(&remoteError{text: "it rests", kind: errResting}), "it rests")
	if !errors.Is(err, errResting) || !errors.Is(err, fsm.ErrNotEligible) {
		t.Errorf("%v", err)
	}
	if err := errorOf(kindOf(fsm.ErrNotEligible), "no"); errors.Is(err, errResting) {
		t.Errorf("%v", err)
	}
}

func TestRestIsAsLongAsARestartNeedsOrTheGraceIfThatIsMore(t *testing.T) {
	for _, tc := range []struct{ grace, lease, want time.Duration }{
		{3 * time.Second, time.Second, 5 * time.Second},
		{5 * time.Second, time.Second, 5 * time.Second},
		{8 * time.Second, time.Second, 8 * time.Second},
		{time.Minute, time.Second, 10 * time.Second},
		{8 * time.Second, 7 * time.Second, 8 * time.Second},
		{0, time.Second, time.Second},
		{500 * time.Millisecond, time.Second, time.Second},
	} {
		c := Config{AgentGrace: tc.grace, Failover: FailoverConfig{Lease: tc.lease}}
		if got := restLength(c); got != tc.want {
			t.Errorf("grace %s, lease %s: %s, want %s", tc.grace, tc.lease, got, tc.want)
		}
	}
}

// Between the rest of the first session and the end of the detector a look around may find another way to a
// member. To begin the sessions anew for it would tell the routers that this node is lost.
func TestNoBFDSessionIsBegunOnceTheyRest(t *testing.T) {
	m := &member{cfg: Config{Name: "lb1", RunDir: t.TempDir()}, logger: slog.New(slog.DiscardHandler), events: newEventLog(func(Event) {}), store: newStore()}
	d := newDetector(m)
	d.cfg = defaultFailover()
	way := func(n byte) watch {
		return watch{sessions: []detect.Key{{Local: addr("192.0.2.1"), Remote: netip.AddrFrom4([4]byte{192, 0, 2, n}), Interface: "lo"}}}
	}
	if err := d.want(way(2)); err != nil || len(d.sessions.Sessions()) != 1 {
		t.Fatalf("%v, %v", d.sessions.Sessions(), err)
	}
	if err := d.rest(time.Second); err != nil {
		t.Fatal(err)
	}
	if err := d.want(way(3)); err != nil {
		t.Fatal(err)
	}
	if got := d.sessions.Sessions(); len(got) != 1 || got[0].Remote != addr("192.0.2.2") {
		t.Errorf("sessions %v", got)
	}
}
