package node

import (
	"bytes"
	"testing"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

func TestANameGivenToAnotherIsNoMembership(t *testing.T) {
	s := fsm.New()
	for _, c := range oneNode() {
		next, err := s.Apply(5, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	for _, tc := range []struct {
		q    memberQuestion
		want bool
	}{
		{memberQuestion{Name: "lb1", Key: make([]byte, fsm.KeySize)}, true},
		{memberQuestion{Name: "lb1"}, false},
		{memberQuestion{Name: "lb1", Key: bytes.Repeat([]byte{1}, fsm.KeySize)}, false},
		{memberQuestion{Name: "lb2", Key: make([]byte, fsm.KeySize)}, false},
	} {
		if got := isMember(s, tc.q); got != tc.want {
			t.Errorf("%+v: %v", tc.q, got)
		}
	}
}

func TestStoreGoesOnAfterAnEntryNobodyCanRead(t *testing.T) {
	s := newStore()
	s.Apply(entry(t, 3, oneNode()[0]))
	res, _ := s.Apply(&raft.Log{Index: 4, Type: raft.LogCommand, Data: []byte("garbage")}).(applyResult)
	if res.err == nil {
		t.Error("no error")
	}
	if len(s.fatal) > 0 {
		t.Error("garbage of this version ends the daemon")
	}
	// Else a node whose log ends so would wait for ever to be level with it.
	if s.State().Index() != 4 {
		t.Errorf("state at %d, want 4", s.State().Index())
	}
}
