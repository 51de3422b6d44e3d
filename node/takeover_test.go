package node

import (
	"testing"
	"time"

	"pontoon/fsm"
)

func TestTakeoverCountsWhatWasAdoptedSince(t *testing.T) {
	var tk takeovers
	if v := tk.view(7); v != nil {
		t.Fatalf("a takeover out of nothing: %+v", v)
	}
	none, mine := history(t, oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true})...)
	began := time.Unix(1000, 0)
	tk.note(none, mine, "lb1", began, func() uint64 { return 5 })
	if v := tk.view(5); v == nil || v.Adopted != 0 || v.Instance != fsm.DefaultInstance || v.At != began {
		t.Fatalf("%+v", v)
	}
	if v := tk.view(12); v.Adopted != 7 {
		t.Errorf("adopted %d, want 7", v.Adopted)
	}
	if v := tk.settled(began.Add(takeoverSettles-1), 12); v != nil {
		t.Errorf("told too early: %+v", v)
	}
	v := tk.settled(began.Add(takeoverSettles), 12)
	if v == nil || v.Adopted != 7 {
		t.Fatalf("not told: %+v", v)
	}
	if again := tk.settled(began.Add(time.Hour), 12); again != nil {
		t.Error("told twice")
	}
	if e := takeoverEvent(*v, "lb1"); e.Text != "lb1 adopted 7 connections since it became master of default" {
		t.Errorf("event %q", e.Text)
	}
	// What changes nothing, or makes another master, is no takeover.
	tk.note(mine, mine, "lb1", began.Add(time.Hour), func() uint64 { t.Error("asked"); return 0 })
	tk.note(none, mine, "lb2", began.Add(time.Hour), func() uint64 { t.Error("asked"); return 0 })
	if v := tk.view(12); v.At != began {
		t.Errorf("%+v", v)
	}
}
