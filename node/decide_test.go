package node

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

func TestNextChangeBringsTheRaftGroupToTheState(t *testing.T) {
	voter := func(n string) raft.Server { return raft.Server{ID: raft.ServerID(n), Suffrage: raft.Voter} }
	nonvoter := func(n string) raft.Server { return raft.Server{ID: raft.ServerID(n), Suffrage: raft.Nonvoter} }
	node := func(n string, voter bool) fsm.Node {
		return fsm.Node{Name: fsm.NodeID(n), Address: n + ":1", Voter: voter}
	}
	for _, tc := range []struct {
		name    string
		nodes   []fsm.Node
		servers []raft.Server
		applied map[string]uint64
		want    changeKind
		whom    string
		none    bool
	}{
		{"equal", []fsm.Node{node("a", true)}, []raft.Server{voter("a")}, nil, 0, "", true},
		{"a joiner enters without a vote", []fsm.Node{node("a", true), node("b", false)}, []raft.Server{voter("a")}, nil, addNonvoter, "b", false},
		{"no vote before it has reported", []fsm.Node{node("a", true), node("b", false)}, []raft.Server{voter("a"), nonvoter("b")}, nil, 0, "", true},
		{"no vote while far behind", []fsm.Node{node("a", true), node("b", false)}, []raft.Server{voter("a"), nonvoter("b")}, map[string]uint64{"b": 900}, 0, "", true},
		{"a vote when caught up", []fsm.Node{node("a", true), node("b", false)}, []raft.Server{voter("a"), nonvoter("b")}, map[string]uint64{"b": 990}, promote, "b", false},
		{"the vote is recorded", []fsm.Node{node("a", true), node("b", false)}, []raft.Server{voter("a"), voter("b")}, nil, recordVoter, "b", false},
		{"who left goes first", []fsm.Node{node("a", true), node("c", false)}, []raft.Server{voter("a"), voter("b")}, nil, remove, "b", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, ok := nextChange(tc.nodes, tc.servers, tc.applied, 1000)
			if ok == tc.none {
				t.Fatalf("change %+v, %v", c, ok)
			}
			if ok && (c.kind != tc.want || c.node != tc.whom) {
				t.Fatalf("change %+v, want kind %d of %s", c, tc.want, tc.whom)
			}
		})
	}
}

func TestContactIsNotFreshBeforeTheLeadersCommitIsApplied(t *testing.T) {
	var c contact
	now := t0
	if c.fresh(now, now, 100) {
		t.Fatal("fresh on a heartbeat alone")
	}
	c.answer(now, 120)
	if c.fresh(now, now, 119) {
		t.Fatal("fresh one entry short of the leader's commit")
	}
	if !c.fresh(now, now, 120) || !c.everFresh() {
		t.Fatal("not fresh although level with the leader")
	}
	for range 20 {
		now = now.Add(200 * time.Millisecond)
		if !c.fresh(now, now, 120) {
			t.Fatal("lost contact although heartbeats come")
		}
	}
	for range 20 {
		now = now.Add(200 * time.Millisecond)
		c.fresh(now, now, 120)
	}
	if c.fresh(now, now, 120) {
		t.Fatal("heartbeats alone keep contact for ever: what is applied may be stuck")
	}
	c.answer(now, 120)
	if !c.fresh(now, now, 120) {
		t.Fatal("contact not regained")
	}
}

func TestContactIsLostBySilenceAndRegainedByAnAnswer(t *testing.T) {
	var c contact
	now := t0
	c.answer(now, 10)
	if !c.fresh(now, time.Time{}, 10) {
		t.Fatal("not fresh to begin with")
	}
	for range 6 {
		now = now.Add(200 * time.Millisecond)
		c.fresh(now, time.Time{}, 10)
	}
	if c.fresh(now, time.Time{}, 10) || !c.stale(now) {
		t.Fatal("fresh after 1.2 s of silence")
	}
	if c.fresh(now, now, 10) {
		t.Fatal("a heartbeat alone gave contact back")
	}
	c.answer(now, 50)
	if c.fresh(now, now, 10) {
		t.Fatal("fresh with old state")
	}
	if !c.fresh(now, now, 50) {
		t.Fatal("contact not regained")
	}
}

func TestContactIsLostWhenTheProcessSlept(t *testing.T) {
	var c contact
	c.answer(t0, 10)
	if !c.fresh(t0, t0, 10) {
		t.Fatal("not fresh to begin with")
	}
	woke := t0.Add(30 * time.Second)
	if c.fresh(woke, woke, 10) {
		t.Fatal("a stopped process woke and trusted what it knew, because a heartbeat came first")
	}
	if c.fresh(woke.Add(time.Millisecond), woke, 10) {
		t.Fatal("trusted what it knew at the second look")
	}
}

func TestContactIgnoresAnAnswerItSleptOver(t *testing.T) {
	var c contact
	c.answer(t0, 10)
	if !c.fresh(t0, t0, 10) {
		t.Fatal("not fresh to begin with")
	}
	woke := t0.Add(30 * time.Second)
	c.fresh(woke, time.Time{}, 10)
	c.answer(t0.Add(time.Millisecond), 10) // was in the socket's buffer all the time
	if c.fresh(woke.Add(time.Millisecond), woke.Add(time.Millisecond), 10) {
		t.Fatal("an answer to a question asked before the sleep gave contact back")
	}
	c.answer(woke.Add(2*time.Millisecond), 11)
	if c.fresh(woke.Add(3*time.Millisecond), time.Time{}, 10) || !c.fresh(woke.Add(3*time.Millisecond), time.Time{}, 11) {
		t.Fatal("contact not regained by an answer asked for after it woke")
	}
}

func TestContactIsLostWhenTheMachineWasSuspended(t *testing.T) {
	var c contact
	c.answer(t0, 10)
	c.clock(t0, time.Hour)
	if !c.fresh(t0, t0, 10) {
		t.Fatal("not fresh to begin with")
	}
	now := t0.Add(100 * time.Millisecond)
	c.clock(now, time.Hour+100*time.Millisecond)
	if !c.fresh(now, now, 10) {
		t.Fatal("lost contact although both clocks agree")
	}
	now = now.Add(100 * time.Millisecond) // Go's clock stood still meanwhile
	c.clock(now, 2*time.Hour)
	if c.fresh(now, now.Add(-time.Millisecond), 10) {
		t.Fatal("a suspended machine woke and trusted what it knew")
	}
}

func TestContactOfAQuietLeaderLasts(t *testing.T) {
	// Nothing but its own proofs comes to a leader, and the drivers look only
	// once a second; the watch for gaps has its own pace.
	var c contact
	now := t0
	for i := range 100 {
		if i%3 == 0 {
			c.answer(now, 10)
		}
		if !c.fresh(now, time.Time{}, 10) {
			t.Fatalf("contact lost after %s", now.Sub(t0))
		}
		now = now.Add(contactEvery)
	}
}

func TestConsumedCountsWhatTheStateMachineHas(t *testing.T) {
	logs := raft.NewInmemStore()
	for i, kind := range []raft.LogType{raft.LogConfiguration, raft.LogNoop, raft.LogCommand, raft.LogCommand, raft.LogBarrier, raft.LogNoop} {
		if err := logs.StoreLog(&raft.Log{Index: uint64(i + 1), Type: kind}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ queued, state, want uint64 }{
		{2, 0, 2}, {3, 0, 0}, {3, 3, 3}, {6, 3, 3}, {6, 4, 6}, {4, 3, 3}, {2, 3, 3},
	} {
		for name, g := range map[string]*raftGroup{"new": {logs: logs}, "walked": {logs: logs, walked: 2}} {
			if got := g.consumed(tc.queued, tc.state); got != tc.want {
				t.Errorf("%s: queued %d, state at %d: consumed %d, want %d", name, tc.queued, tc.state, got, tc.want)
			}
		}
	}
	g := &raftGroup{logs: logs}
	g.consumed(4, 3)
	if err := logs.DeleteRange(1, 4); err != nil {
		t.Fatal(err)
	}
	if got := g.consumed(6, 3); got != 3 {
		t.Errorf("after a snapshot: consumed %d, want 3", got)
	}
	if got := (&raftGroup{logs: logs}).consumed(6, 4); got != 6 {
		t.Errorf("after a restart: consumed %d, want 6", got)
	}
}

func TestSyncGate(t *testing.T) {
	up := syncPeer{counts: true, streaming: true}
	loading := syncPeer{counts: true}
	dead := syncPeer{}
	now := t0
	s := syncState{}
	if s = s.next([]syncPeer{up, loading}, now, syncGrace); s.ok {
		t.Fatal("open before the snapshot of a live peer is applied")
	}
	if s = s.next([]syncPeer{up, dead}, now, syncGrace); !s.ok {
		t.Fatal("closed although the only silent peer is dead")
	}
	if s = s.next([]syncPeer{up, loading}, now, syncGrace); !s.ok {
		t.Fatal("closed at the first moment of a lost stream")
	}
	if s = s.next([]syncPeer{up, loading}, now.Add(syncGrace-time.Millisecond), syncGrace); !s.ok {
		t.Fatal("closed within the grace")
	}
	if s = s.next([]syncPeer{up, loading}, now.Add(syncGrace+time.Millisecond), syncGrace); s.ok {
		t.Fatal("open long after a live peer's stream was lost")
	}
	if s = s.next(nil, now, syncGrace); !s.ok {
		t.Fatal("closed without any peer")
	}
}

func TestSyncGateAdoptsAndResets(t *testing.T) {
	var g syncGate
	loading := []syncPeer{{counts: true}}
	g.start(true)
	if !g.inSync(t0, loading, true) {
		t.Fatal("a daemon that adopted its maps is not in sync")
	}
	g.reset()
	if g.inSync(t0, loading, true) {
		t.Fatal("in sync right after it was declared dead")
	}
	if g.inSync(t0, nil, false) {
		t.Fatal("in sync with nobody although the state is not known yet")
	}
}
