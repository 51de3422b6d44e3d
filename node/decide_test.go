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
