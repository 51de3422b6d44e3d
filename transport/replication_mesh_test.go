package transport

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// replActor is a node to which things happen: one at a time, as one data plane
// orders what it tells.
type replActor struct {
	*replNode
	digests bool // without them the stream alone must converge
	mu      sync.Mutex
	version uint64
	late    [][]byte   // changes that are visible and not published yet
	during  [][]replOp // what happens while a snapshot or a repair is read
}

// publishLate keeps the order of changes.
func (a *replActor) publishLate() {
	for _, records := range a.late {
		a.Publish(records)
	}
	a.late = nil
}

// act does one operation. peer is the one whose stream or replica it is about.
func (a *replActor) act(n *replNet, op replOp, peer *replNode) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version += 100
	switch op.kind {
	case "late": // visible at once, published with what comes next
		a.late = append(a.late, a.table.put(op.key, a.version))
		return
	case "late delete":
		a.late = append(a.late, a.table.del(op.key))
		return
	}
	a.publishLate()
	healed := op.kind == "stale" || op.kind == "rot" || op.kind == "compare"
	if healed && !a.digests {
		return
	}
	switch op.kind {
	case "stale": // an update that its removal has overtaken
		update := a.table.put(op.key, a.version)
		a.Publish(a.table.del(op.key))
		a.Publish(update)
	case "rot":
		peer.table.rot(a.name, func(replica map[uint64]uint64) {
			delete(replica, op.key)
			replica[op.key+1] = a.version
		})
	case "compare":
		replPoke(a.peer(peer.name).round)
	case "cut":
		n.sever(a.name, peer.name)
	default:
		n.act(a.replNode, op, a.version)
	}
}

// drawMeshKinds draws what happens in one run. Most kinds are left out of most
// runs: a cut, a loss or a repair heals what went wrong before it, and a fault
// would hide behind the next of them.
func drawMeshKinds(rt *rapid.T) []string {
	kinds := []string{"put", "put", "delete", "flush"}
	for _, kind := range []string{"late", "late delete", "burst", "lose", "cut", "stale", "rot", "compare"} {
		if rapid.IntRange(0, 2).Draw(rt, kind) == 0 {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

func drawMeshOps(rt *rapid.T, label string, longest int, kinds ...string) []replOp {
	drawn := rapid.SampledFrom(kinds)
	return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) replOp {
		return replOp{drawn.Draw(rt, "kind"), rapid.Uint64Range(0, 40).Draw(rt, "key")}
	}), 0, longest).Draw(rt, label)
}

// Two and three nodes that replicate to each other, with all that may happen to
// them in any order, in the middle of snapshots and of repairs too: when it is
// over, every node holds exactly what each other owns.
func TestReplicationMeshConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newReplNet(t, true)
		defer n.stop()
		var actors []*replActor
		kinds := drawMeshKinds(rt)
		digests := rapid.Bool().Draw(rt, "digests")
		for i := range rapid.IntRange(2, 3).Draw(rt, "nodes") {
			actors = append(actors, addReplActor(rt, n, fmt.Sprintf("node%d", i), digests, kinds))
		}
		n.mesh()
		for _, op := range drawMeshOps(rt, "operations", 40, append(kinds, "settle", "pause")...) {
			i := rapid.IntRange(0, len(actors)-1).Draw(rt, "node")
			j := (i + rapid.IntRange(1, len(actors)-1).Draw(rt, "peer")) % len(actors)
			a, peer := actors[i], actors[j].replNode
			switch op.kind {
			case "settle": // or all would be over before the first snapshot is
				replEventually(t, "a stream runs", func() bool { return a.status(peer.name).State == ReplicationStreaming })
			case "pause":
				replSleep(t.Context(), time.Duration(op.key)*50*time.Microsecond)
			default:
				a.act(n, op, peer)
			}
		}
		for _, a := range actors {
			a.mu.Lock()
			a.publishLate()
			a.during = nil // what has not happened by now will not
			a.mu.Unlock()
		}
		for _, from := range actors {
			for _, to := range actors {
				if from != to {
					n.awaitEqual(from.replNode, to.replNode)
				}
			}
		}
	})
}

func addReplActor(rt *rapid.T, n *replNet, name string, digests bool, kinds []string, tune ...func(*ReplicationConfig, *replTable)) *replActor {
	a := &replActor{digests: digests}
	for range rapid.IntRange(0, 12).Draw(rt, "steps") {
		a.during = append(a.during, drawMeshOps(rt, "during", 5, kinds...))
	}
	ready := make(chan struct{})
	a.replNode = n.add(name, func(c *ReplicationConfig, m *replTable) {
		for _, f := range tune {
			f(c, m)
		}
		if digests {
			c.Digests = m
			c.DigestInterval = time.Duration(rapid.IntRange(1, 8).Draw(rt, "interval")) * time.Millisecond
			c.DigestConfirm = time.Duration(rapid.IntRange(1, 4).Draw(rt, "confirm")) * time.Millisecond
		}
		c.QueueRecords, c.BatchRecords = 20, 4
		c.ReconnectMin, c.ReconnectMax = time.Millisecond, 4*time.Millisecond
		c.FlushInterval = time.Millisecond
		m.chunk = rapid.IntRange(1, 10).Draw(rt, "chunk")
		for k := range rapid.Uint64Range(0, 40).Draw(rt, "live before") {
			m.put(k, 1)
		}
		happen := func() {
			<-ready
			a.mu.Lock()
			var ops []replOp
			if len(a.during) > 0 {
				ops, a.during = a.during[0], a.during[1:]
			}
			a.mu.Unlock()
			for _, op := range ops {
				a.act(n, op, n.other(name))
			}
		}
		m.step, m.after = func(int) { happen() }, happen
	})
	close(ready)
	return a
}

// other is some node besides the named one.
func (n *replNet) other(name string) *replNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other, node := range n.nodes {
		if other != name {
			return node
		}
	}
	return nil
}
