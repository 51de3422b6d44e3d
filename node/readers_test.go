package node

import (
	"testing"
	"time"

	"pontoon/fsm"
)

func TestReadersAreAllWhoMayHaveToRead(t *testing.T) {
	alive := func(name fsm.NodeID) fsm.Node { return fsm.Node{Name: name, Alive: true} }
	nodes := []fsm.Node{alive("lb1"), alive("lb2"), {Name: "lb3"}}
	table := newReportTable()
	check := func(what string, reads, known bool) {
		t.Helper()
		if r, k := table.readers(nodes, "lb1", 6); r != reads || k != known {
			t.Errorf("%s: reads %v, known %v", what, r, k)
		}
	}
	now := time.Now()
	check("one that lives was not heard", false, false)
	table.put(report{Node: "lb2", Reads: 6}, now)
	check("all that live read it; a dead one was never heard", true, true)
	table.put(report{Node: "lb3", Reads: 5}, now)
	check("a dead one is known not to read it", false, true)
	table.put(report{Node: "lb3", Reads: 7}, now)
	check("all read it", true, true)
	table.put(report{Node: "lb2", Reads: 5}, now)
	check("one that lives does not", false, true)
}
