package node

import (
	"bytes"
	"maps"
	"testing"
	"time"

	"pontoon/fsm"
)

// twoNodes is a state of two members, of which the second died at index 8 and lives
// again.
func twoNodes(t *testing.T) *fsm.State {
	t.Helper()
	s := fsm.New()
	apply := func(index uint64, c fsm.Command) {
		next, err := s.Apply(index, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	for i, c := range oneNode() {
		apply(uint64(i+1), c)
	}
	hash, now := bytes.Repeat([]byte{1}, 32), time.Unix(1e9, 0)
	apply(5, fsm.CreateToken{Token: fsm.Token{ID: "t1", Hash: hash, Role: fsm.RoleLB, Expires: now.Add(time.Hour)}, Now: now})
	apply(6, fsm.JoinNode{TokenID: "t1", SecretHash: hash, Now: now, Node: fsm.Node{
		Name: "lb2", Address: "192.0.2.2:7400", GossipPort: 7401, Role: fsm.RoleLB, Key: bytes.Repeat([]byte{2}, fsm.KeySize),
	}})
	apply(7, fsm.NodeVerdict{Node: "lb2", Alive: true})
	apply(8, fsm.NodeVerdict{Node: "lb2"})
	apply(9, fsm.NodeVerdict{Node: "lb2", Alive: true})
	return s
}

func TestWhoCameBackEmptyIsBuriedOnce(t *testing.T) {
	s := twoNodes(t)
	dead, err := s.Apply(10, fsm.NodeVerdict{Node: "lb2"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		s    *fsm.State
		r    report
		want int
	}{
		{"asks", s, report{Node: "lb2", Reborn: true, State: 9}, 1},
		{"does not ask", s, report{Node: "lb2", State: 9}, 0},
		{"asked in an earlier life", s, report{Node: "lb2", Reborn: true, State: 6}, 0},
		{"is dead already", dead, report{Node: "lb2", Reborn: true, State: 10}, 0},
		{"is nobody", s, report{Node: "lb9", Reborn: true, State: 9}, 0},
	} {
		if got := burials(tc.s, []agedReport{{report: tc.r}}); len(got) != tc.want || (tc.want > 0 && (got[0].Node != "lb2" || got[0].Alive)) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

func TestARebornNodeWaitsForItsBurial(t *testing.T) {
	now := time.Unix(1000, 0)
	var r reborn
	if r.waits(now, true) || !r.mayTell(7, 0) {
		t.Error("one that adopted its data plane waits")
	}
	r.begin(true)
	if !r.waits(now, false) || !r.waits(now.Add(time.Hour), true) || !r.waits(now.Add(time.Hour+rebornPatience), true) {
		t.Error("it does not wait, or its patience begins before it hears a leader")
	}
	if r.waits(now.Add(time.Hour+rebornPatience+1), true) {
		t.Error("it waits for ever")
	}
	r.begin(true)
	r.buried()
	if r.waits(now, true) {
		t.Error("it waits although it was buried")
	}
	if r.mayTell(7, 6) || !r.heldBack() || r.heldBack() || !r.mayTell(7, 7) || r.heldBack() {
		t.Error("it tells a peer that may not know of its death, or not one that does")
	}
}

func TestADeathThatIsOverIsNotMissed(t *testing.T) {
	s := twoNodes(t)
	one, _ := s.Node("lb1")
	two, _ := s.Node("lb2")
	alive := map[uint8]bool{one.Slot: true, two.Slot: true}
	var d deaths
	if got := d.missed(s, alive); !maps.Equal(got, alive) {
		t.Errorf("at the start: %v", got)
	}
	for _, c := range []fsm.NodeVerdict{{Node: "lb2"}, {Node: "lb2", Alive: true}} {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	if got := d.missed(s, alive); !got[one.Slot] || got[two.Slot] || !alive[two.Slot] {
		t.Errorf("after a death that is over: %v", got)
	}
	if got := d.missed(s, alive); !maps.Equal(got, alive) {
		t.Errorf("once more: %v", got)
	}
}

// A daemon that was down while a peer died learns of it from what it wrote down before.
func TestADeathDuringADaemonsAbsenceIsNotMissed(t *testing.T) {
	s := twoNodes(t)
	one, _ := s.Node("lb1")
	two, _ := s.Node("lb2")
	alive := map[uint8]bool{one.Slot: true, two.Slot: true}
	var before deaths
	before.missed(s, alive)
	dir := t.TempDir()
	if err := (membership{Name: "lb1", Deaths: before}).save(dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range []fsm.NodeVerdict{{Node: "lb2"}, {Node: "lb2", Alive: true}} {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	ms, err := loadMembership(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := ms.Deaths.missed(s, alive); !got[one.Slot] || got[two.Slot] {
		t.Errorf("after the restart: %v", got)
	}
}
