package health

import (
	"testing"
	"time"
)

// Who takes a node's word has to know how many probes in a row it rests on, and whether one is yet to come.
func TestResultsTellOfTheLastRowAndOfTheProbeUnderWay(t *testing.T) {
	s := newSimulation(1000, 100)
	want := []struct {
		passed bool
		row    uint64
	}{{true, 1}, {true, 2}, {false, 1}, {false, 2}, {false, 3}, {true, 1}}
	n := 0
	s.result = func(*check, time.Duration) (outcome, time.Duration) {
		out := outcome{passed: want[min(n, len(want)-1)].passed, why: "no"}
		n++
		return out, time.Millisecond
	}
	s.board.want([]Target{target(1, "192.0.2.1:80")}, 0)
	look := func() Result { return s.board.result(1, s.board.wishes[1]) }
	for i, w := range want {
		for n == i {
			s.run(time.Millisecond)
		}
		if r := look(); !r.Flying || r.Probes != uint64(i) {
			t.Errorf("while probe %d is under way: flying %t, %d probes", i, r.Flying, r.Probes)
		}
		s.run(2 * time.Millisecond)
		if r := look(); r.Flying || r.Passed != w.passed || r.Row != w.row {
			t.Errorf("after probe %d: flying %t, passed %t, %d in a row; want %t, %d", i, r.Flying, r.Passed, r.Row, w.passed, w.row)
		}
	}
}
