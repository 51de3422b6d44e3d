package node

import (
	"testing"
	"time"

	"pontoon/node/host"
)

func TestAChangeOfCarrierIsSeenInBothDirections(t *testing.T) {
	d := &driver{up: map[string]bool{"eth1": true, "eth2": false}}
	for _, tc := range []struct {
		name  string
		links []host.Link
		want  bool
	}{
		{"as before", []host.Link{{Name: "eth1", Up: true}, {Name: "eth2"}}, false},
		{"one went down", []host.Link{{Name: "eth1"}, {Name: "eth2"}}, true},
		{"one came up", []host.Link{{Name: "eth1", Up: true}, {Name: "eth2", Up: true}}, true},
		{"a new one", []host.Link{{Name: "eth1", Up: true}, {Name: "eth2"}, {Name: "eth3", Up: true}}, false},
	} {
		if got := d.carrierChanged(tc.links); got != tc.want {
			t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
		}
	}
}

func TestAnAnswerFromBeforeTheLinkChangedConfirmsNothing(t *testing.T) {
	var c contact
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	c.answer(at(0), 7)
	if !c.fresh(at(1), at(1), 7) {
		t.Fatal("not fresh after an answer that was applied")
	}
	c.unsettle(at(100))
	if c.fresh(at(101), at(101), 7) {
		t.Error("fresh without having asked again")
	}
	c.answer(at(50), 7) // asked before, delivered late by TCP
	if c.fresh(at(150), at(150), 7) {
		t.Error("fresh by an answer to a question from before")
	}
	c.answer(at(160), 8)
	if c.fresh(at(170), at(170), 7) {
		t.Error("fresh before the answer's index was applied")
	}
	if !c.fresh(at(180), at(180), 8) {
		t.Error("not fresh although the new answer was applied")
	}
}
