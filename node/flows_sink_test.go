package node

import "testing"

// A node that was cut off lets a peer in whom it does not know yet. It must not
// take the middle of that peer's snapshot for the whole of it when it learns.
func TestASnapshotOfAPeerLearnedMeanwhileIsBegunAgain(t *testing.T) {
	m := &member{store: newStore(), guests: map[machine]bool{}}
	sink := newFlowSink(m)
	sink.SnapshotBegin("lb1")
	if err := sink.Apply(t.Context(), "lb1", nil); err == nil {
		t.Error("records of an unknown node were taken")
	}
	m.store.Apply(entry(t, 3, oneNode()[0]))
	if _, ok := m.slotOf("lb1"); !ok {
		t.Fatal("lb1 is not known")
	}
	if err := sink.Apply(t.Context(), "lb1", nil); err == nil {
		t.Error("records were taken in the middle of a snapshot")
	}
	if err := sink.SnapshotEnd(t.Context(), "lb1"); err == nil {
		t.Error("the snapshot was taken for complete")
	}
}
