package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pontoon/fsm"
)

// history applies commands and returns the states before and after the last.
func history(t *testing.T, cmds ...fsm.Command) (prev, next *fsm.State) {
	t.Helper()
	next = fsm.New()
	for i, c := range cmds {
		s, err := next.Apply(uint64(i+1), c)
		if err != nil {
			t.Fatalf("command %d (%T): %v", i, c, err)
		}
		prev, next = next, s
	}
	return prev, next
}

func oneNode(extra ...fsm.Command) []fsm.Command {
	return append([]fsm.Command{fsm.InitCluster{
		Cluster: fsm.Cluster{ID: "0123456789abcdef", CA: []byte{1}, GossipKey: [][]byte{make([]byte, 32)}},
		Node:    fsm.Node{Name: "lb1", Role: fsm.RoleLB, Address: "192.0.2.1:7400", GossipPort: 7401, Voter: true, Alive: true, Key: make([]byte, fsm.KeySize)},
	}}, extra...)
}

func TestEventsSayWhatAStepMeans(t *testing.T) {
	ready := fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true}
	vip := fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}
	for _, tc := range []struct {
		name string
		cmds []fsm.Command
		want []string // each is part of one event's text
	}{
		{"the first node", oneNode(), []string{"lb1 (lb, 192.0.2.1:7400) joined"}},
		{"ready means master", oneNode(ready), []string{"lb1: its data plane is ready, its links are up, its flows are in sync", "lb1 is master of default"}},
		{"death", oneNode(ready, fsm.NodeVerdict{Node: "lb1", Reason: "test"}), []string{"lb1 is dead"}},
		{"configuration", oneNode(ready, vip), []string{"vip 192.0.2.100 was created"}},
		{"a repeated report", oneNode(ready, ready), nil},
		{"an instance without a master", oneNode(ready, fsm.PutInstance{Name: "x", Kind: fsm.InstanceECMP}), []string{"instance x was created", "x is served by lb1, without a master"}},
		{"nobody is left of one", oneNode(ready, fsm.PutInstance{Name: "x", Kind: fsm.InstanceECMP}, fsm.NodeVerdict{Node: "lb1", Reason: "test"}), []string{"lb1 is dead", "x is served by nobody"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			prev, next := history(t, tc.cmds...)
			var got []string
			for _, e := range stateEvents(prev, next) {
				got = append(got, e.Text)
				if e.Index != next.Index() {
					t.Errorf("%q has index %d, want %d", e.Text, e.Index, next.Index())
				}
			}
			for _, w := range tc.want {
				if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, w) }) {
					t.Errorf("no event says %q; got %q", w, got)
				}
			}
			if tc.want == nil && len(got) > 0 {
				t.Errorf("unexpected events %q", got)
			}
		})
	}
}

func TestEventLogKeepsTheNewestAndWakesFollowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newEventLog(func(Event) {})
		for range maxEvents + 10 {
			l.add(Event{Text: "old"})
		}
		backlog, next := l.since(time.Time{})
		if len(backlog) != maxEvents {
			t.Fatalf("backlog of %d, want the newest %d", len(backlog), maxEvents)
		}
		got := make(chan []Event)
		go func() {
			e, _ := next(t.Context())
			got <- e
		}()
		synctest.Wait()
		l.add(Event{Text: "new"})
		if e := <-got; len(e) != 1 || e[0].Text != "new" {
			t.Fatalf("follower got %v", e)
		}
	})
}

func TestEventLogFollowerTakesNothingWhenItsContextEnds(t *testing.T) {
	l := newEventLog(func(Event) {})
	_, next := l.since(time.Time{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := next(ctx); err == nil || e != nil {
		t.Fatalf("got %v, %v", e, err)
	}
	l.add(Event{Text: "kept"})
	if e, err := next(t.Context()); err != nil || len(e) != 1 {
		t.Fatalf("got %v, %v", e, err)
	}
}
