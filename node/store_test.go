package node

import (
	"bytes"
	"io"
	"net/netip"
	"testing"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

func entry(t *testing.T, index uint64, c fsm.Command) *raft.Log {
	t.Helper()
	b, err := fsm.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: b}
}

func TestStoreAnswersARefusalWithoutChangingTheState(t *testing.T) {
	s := newStore()
	if res, _ := s.Apply(entry(t, 3, oneNode()[0])).(applyResult); res.err != nil {
		t.Fatal(res.err)
	}
	if res, _ := s.Apply(entry(t, 4, fsm.DeleteService{Name: "none"})).(applyResult); res.err == nil {
		t.Fatal("deleting what is not there was not refused")
	}
	if s.State().Index() != 4 || len(s.State().Nodes()) != 1 {
		t.Fatalf("index %d, nodes %v", s.State().Index(), s.State().Nodes())
	}
}

func TestStoreStopsAtALogItCannotRead(t *testing.T) {
	s := newStore()
	s.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte(`{"v":999,"type":"init_cluster","data":{}}`)})
	select {
	case err := <-s.fatal:
		t.Log(err)
	default:
		t.Fatal("an entry of a newer version was skipped: replicas would differ")
	}
}

type memorySink struct{ bytes.Buffer }

func (*memorySink) ID() string    { return "test" }
func (*memorySink) Cancel() error { return nil }
func (*memorySink) Close() error  { return nil }

func TestStoreRestoresItsSnapshot(t *testing.T) {
	s := newStore()
	s.Apply(entry(t, 3, oneNode()[0]))
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var sink memorySink
	if err := snap.Persist(&sink); err != nil {
		t.Fatal(err)
	}
	other := newStore()
	changed := other.Changed()
	if err := other.Restore(io.NopCloser(&sink.Buffer)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("watchers were not told")
	}
	a, _ := s.State().Snapshot()
	b, _ := other.State().Snapshot()
	if !bytes.Equal(a, b) {
		t.Error("the restored state differs")
	}
}

func TestStoreReplaysThePastInSilence(t *testing.T) {
	s := newStore()
	s.Apply(entry(t, 1, oneNode()[0]))
	if n := len(s.takeTransitions()); n != 0 {
		t.Fatalf("%d steps of the past became events", n)
	}
	s.live.Store(true)
	s.Apply(entry(t, 2, fsm.NodeReport{Node: "lb1", Ready: true}))
	if n := len(s.takeTransitions()); n != 1 {
		t.Fatalf("%d steps, want 1", n)
	}
}
