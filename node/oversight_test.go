package node

import (
	"testing"
	"time"

	"pontoon/fsm"
)

func lostBy(node string, age int64, lost ...fsm.NodeID) agedReport {
	return agedReport{report{Node: node, Lost: lost}, age}
}

func TestALeaderThatIsCutFromSomebodyHandsOnToWhoIsNot(t *testing.T) {
	alive := func(n string, a bool) fsm.Node { return fsm.Node{Name: fsm.NodeID(n), Alive: a, Voter: true} }
	three := []fsm.Node{alive("lb1", true), alive("lb2", true), alive("lb3", true)}
	everybody := map[fsm.NodeID]bool{"lb1": true, "lb2": true, "lb3": true, "lb4": true}
	for _, tc := range []struct {
		name    string
		nodes   []fsm.Node
		reports []agedReport
		able    map[fsm.NodeID]bool
		want    fsm.NodeID
	}{
		{"all reach all", three, []agedReport{lostBy("lb1", 10), lostBy("lb2", 10), lostBy("lb3", 10)}, everybody, ""},
		{"the leader is cut from lb2", three, []agedReport{lostBy("lb1", 10, "lb2"), lostBy("lb2", 9000), lostBy("lb3", 10)}, everybody, "lb3"},
		{"lb3 is not level", three, []agedReport{lostBy("lb1", 10, "lb2"), lostBy("lb3", 10)}, map[fsm.NodeID]bool{"lb2": true}, ""},
		{"two others are cut from each other", three, []agedReport{lostBy("lb1", 10), lostBy("lb2", 10, "lb3"), lostBy("lb3", 10, "lb2")}, everybody, ""},
		{"lb2 is lost to both: it is dying", three, []agedReport{lostBy("lb1", 10, "lb2"), lostBy("lb3", 10, "lb2")}, everybody, ""},
		{"lb2 is dead", []fsm.Node{alive("lb1", true), alive("lb2", false), alive("lb3", true)}, []agedReport{lostBy("lb1", 10, "lb2"), lostBy("lb3", 10)}, everybody, ""},
		{"old words", three, []agedReport{lostBy("lb1", 5000, "lb2"), lostBy("lb3", 10)}, everybody, ""},
		{"who is worse placed is no heir", append(three[:3:3], alive("lb4", true)), []agedReport{
			lostBy("lb1", 10, "lb2"), lostBy("lb2", 10, "lb1", "lb3"), lostBy("lb3", 10, "lb2"), lostBy("lb4", 10),
		}, everybody, "lb4"},
	} {
		var o oversight
		var got fsm.NodeID
		o, got = o.step("lb1", tc.nodes, tc.reports, tc.able, t0)
		if got != "" {
			t.Errorf("%s: handed on to %s at once", tc.name, got)
		}
		o, got = o.step("lb1", tc.nodes, tc.reports, tc.able, t0.Add(cutLasts))
		if got != tc.want {
			t.Errorf("%s: handed on to %q, want %q", tc.name, got, tc.want)
		}
		if _, got = o.step("lb1", tc.nodes, tc.reports, tc.able, t0.Add(cutLasts+time.Second)); got != "" {
			t.Errorf("%s: tried again after a second", tc.name)
		}
	}
}

func TestACutThatEndsSoonMovesNoLeadership(t *testing.T) {
	nodes := []fsm.Node{{Name: "lb1", Alive: true, Voter: true}, {Name: "lb2", Alive: true, Voter: true}, {Name: "lb3", Alive: true, Voter: true}}
	able := map[fsm.NodeID]bool{"lb2": true, "lb3": true}
	var o oversight
	for i, lost := range [][]fsm.NodeID{{"lb2"}, nil, {"lb2"}, {"lb2"}} {
		var got fsm.NodeID
		if o, got = o.step("lb1", nodes, []agedReport{lostBy("lb1", 10, lost...), lostBy("lb3", 10)}, able, t0.Add(time.Duration(i)*150*time.Millisecond)); got != "" {
			t.Fatalf("step %d: handed on to %s", i, got)
		}
	}
}

// Who leads because it reaches all does not hand on to who does not, though that one be master of nothing.
func TestLeadershipIsNotHandedToWhoReachesLess(t *testing.T) {
	nodes := []fsm.Node{{Name: "lb1", Alive: true}, {Name: "lb2", Alive: true}, {Name: "lb3", Alive: true}}
	able := map[fsm.NodeID]bool{"lb2": true, "lb3": true}
	got := notWorsePlaced("lb1", nodes, []agedReport{lostBy("lb2", 10, "lb3"), lostBy("lb3", 10, "lb2")}, able)
	if got["lb2"] || got["lb3"] {
		t.Errorf("fit to lead: %v", got)
	}
	if got = notWorsePlaced("lb1", nodes, nil, able); !got["lb2"] || !got["lb3"] {
		t.Errorf("nobody is parted, and fit to lead are only %v", got)
	}
}
