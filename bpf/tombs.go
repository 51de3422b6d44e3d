package bpf

import (
	"math/rand/v2"
	"time"
)

const (
	tombPlaces = 1 << 16
	tombAge    = 10 * time.Minute // for which an end is remembered, if its place is not needed for a later one
)

// tombs remembers connections that have ended, so that another node which did not hear of it does not
// bring them back. Memory is bounded: of two connections in one place the later end is known. The zero value
// is ready; guarded by flowMu.
type tombs struct {
	seed   uint64
	places []tomb
}

// tomb says when the connection with this hash had its last packet, and when it was heard to have ended.
// Zero: nothing.
type tomb struct{ tag, last, noted uint32 }

// note takes note of an end.
func (t *tombs) note(key *pontoonFlowKey, last uint32, now instant) {
	if t.places == nil {
		t.seed, t.places = rand.Uint64(), make([]tomb, tombPlaces)
	}
	h := key.hash(t.seed)
	t.places[h%tombPlaces] = tomb{tag: uint32(h>>32) | 1, last: last, noted: uint32(now.jiffies)}
}

// of returns when the last connection of this tuple that is known to have ended had its last packet.
func (t *tombs) of(key *pontoonFlowKey, now instant) (last uint32, ended bool) {
	if t.places == nil {
		return 0, false
	}
	h := key.hash(t.seed)
	p := t.places[h%tombPlaces]
	return p.last, p.tag == uint32(h>>32)|1 && now.idle(p.noted) < tombAge
}
