package node

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

func voters(names ...fsm.NodeID) []fsm.Node {
	var out []fsm.Node
	for _, n := range names {
		out = append(out, fsm.Node{Name: n, Role: fsm.RoleLB, Alive: true, Voter: true})
	}
	return out
}

func set(names ...fsm.NodeID) map[fsm.NodeID]bool {
	out := map[fsm.NodeID]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

func TestWhoShouldLeadInPlaceOfAMaster(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*scene)
		want   fsm.NodeID
	}{
		{"the last in the succession", func(*scene) {}, "c"},
		{"nobody while the leader is master of nothing", func(sc *scene) { sc.masters = set("b") }, ""},
		{"nobody while each is master of something", func(sc *scene) { sc.masters = set("a", "b", "c") }, ""},
		{"not who is master of something else", func(sc *scene) { sc.masters = set("a", "c") }, "b"},
		{"not who is dead", func(sc *scene) { sc.nodes[2].Alive = false }, "b"},
		{"not who has no vote", func(sc *scene) { sc.nodes[2].Voter = false }, "b"},
		{"not who is about to leave", func(sc *scene) { sc.nodes[2].Draining = true }, "b"},
		{"not who is behind", func(sc *scene) { sc.able = set("b") }, "b"},
		{"nobody when all are behind", func(sc *scene) { sc.able = nil }, ""},
		{"a witness is never in a succession", func(sc *scene) {
			sc.nodes = append(sc.nodes, fsm.Node{Name: "w", Role: fsm.RoleWitness, Alive: true, Voter: true})
			sc.able = set("b", "c", "w")
		}, "w"},
		{"of equals the first by name", func(sc *scene) { sc.places = nil }, "b"},
	} {
		sc := scene{
			self: "a", nodes: voters("a", "b", "c"), masters: set("a"), able: set("a", "b", "c"),
			places: map[fsm.NodeID]int{"a": 1, "b": 2, "c": 3},
		}
		tc.change(&sc)
		if got := sc.heir(); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestLeadershipIsHandedOnOncePerCalmTime(t *testing.T) {
	sc := scene{self: "a", nodes: voters("a", "b"), masters: set("a"), able: set("b"), epoch: 5}
	p := newPreference(t0)
	at := func(d time.Duration, want fsm.NodeID) {
		t.Helper()
		var got fsm.NodeID
		if p, got = p.step(sc, t0.Add(d)); got != want {
			t.Fatalf("after %v: %q, want %q", d, got, want)
		}
	}
	at(0, "")
	at(calmTime-1, "")
	sc.able = nil
	at(calmTime, "")
	sc.able = set("b") // to have nobody is no attempt
	at(calmTime+1, "b")
	at(calmTime+2, "")
	at(10*calmTime, "")
	sc.epoch++ // a mastership
	at(11*calmTime, "")
	at(12*calmTime-1, "")
	at(12*calmTime, "b")
	sc.nodes = voters("a", "b", "c") // somebody joined
	at(13*calmTime, "")
	sc.nodes = voters("a", "b", "c")
	sc.nodes[1].Alive = false // a verdict
	sc.able = set("b", "c")
	at(14*calmTime-1, "")
	at(14*calmTime, "")
	at(15*calmTime, "c")
}

func TestSceneOfAStateCountsInstancesWithVIPs(t *testing.T) {
	_, s := history(t, oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true})...)
	if sc := sceneOf(s, "lb1", nil); len(sc.masters) != 0 {
		t.Errorf("an instance without VIPs is nobody's burden: %+v", sc)
	}
	_, s = history(t, oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true},
		fsm.PutVIP{VIP: fsm.VIP{Address: benchSelf.Links[0].Prefixes[0].Addr().Next()}})...)
	if sc := sceneOf(s, "lb1", nil); !sc.masters["lb1"] || sc.places["lb1"] != 1 || sc.epoch == 0 {
		t.Errorf("%+v", sc)
	}
}

func TestWhoIsAbleToLead(t *testing.T) {
	const commit = 1000
	for _, tc := range []struct {
		name   string
		change func(*agedReport, *raft.Server)
		want   bool
	}{
		{"a voter that is level", func(*agedReport, *raft.Server) {}, true},
		{"a little behind", func(r *agedReport, _ *raft.Server) { r.Applied = commit - levelWith }, true},
		{"behind", func(r *agedReport, _ *raft.Server) { r.Applied = commit - levelWith - 1 }, false},
		{"silent for long", func(r *agedReport, _ *raft.Server) { r.AgeMS = 3 * reportEvery.Milliseconds() }, false},
		{"without a vote", func(_ *agedReport, s *raft.Server) { s.Suffrage = raft.Nonvoter }, false},
		{"not ready, perhaps for its disk", func(r *agedReport, _ *raft.Server) { r.Ready = false }, false},
	} {
		r := agedReport{report{Node: "lb1", Applied: commit, Ready: true}, 10}
		s := raft.Server{ID: "lb1", Suffrage: raft.Voter}
		tc.change(&r, &s)
		if got := ableOf([]agedReport{r}, []raft.Server{s}, commit)["lb1"]; got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
