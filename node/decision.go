package node

import (
	"math"
	"sync"
	"time"

	"pontoon/fsm"
)

// decision is what the leader that committed it knows of an entry that moved
// instances: its half of a timeline. Times are this process's; a zero one is
// not known, or no such step.
type decision struct {
	cause     fsm.FailoverCause
	of        fsm.NodeID // whose instances it moved; "" where it was not about a node
	began     time.Time  // last sign of life of the old master, or the wish
	detected  time.Time  // the first node called it lost
	confirmed time.Time  // a majority had, or the leader was told
	elected   time.Time  // this leader began to lead
	committed time.Time
}

// parts are the steps as they are told to others. What is said to have been
// before the beginning was no step of this failover.
func (d decision) parts() fsm.FailoverParts {
	since := func(t time.Time) float64 {
		if t.IsZero() || d.began.IsZero() {
			return 0
		}
		return millis(t.Sub(d.began))
	}
	return fsm.FailoverParts{
		Detected: since(d.detected), Confirmed: since(d.confirmed), Elected: since(d.elected), Committed: since(d.committed),
	}
}

// millis rounds to a tenth of a millisecond. 0 stands for "not known", so what
// took less is a tenth, and what is negative is nothing.
func millis(d time.Duration) float64 {
	if d < 0 {
		return 0
	}
	return max(math.Round(float64(d)/float64(time.Millisecond)*10)/10, 0.1)
}

// decisionsKept is how many a leader remembers. The new masters ask within
// seconds.
const decisionsKept = 64

// decisions are the last ones of this node, by the index of their entry. An entry
// may hold several, each about another node.
type decisions struct {
	mu     sync.Mutex
	rows   map[uint64][]decision
	order  []uint64
	led    time.Time                // when this node began to lead last
	agreed map[fsm.NodeID]time.Time // when a majority said it had lost that leader
}

// put notes what the entry at index decided.
func (d *decisions) put(index uint64, all ...decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rows == nil {
		d.rows = map[uint64][]decision{}
	}
	if _, known := d.rows[index]; !known {
		d.order = append(d.order, index)
	}
	d.rows[index] = all
	for len(d.order) > decisionsKept {
		delete(d.rows, d.order[0])
		d.order = d.order[1:]
	}
}

// get returns what the entry at index decided; nothing if that is not known.
func (d *decisions) get(index uint64) []decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rows[index]
}

// nowLeading notes that this node was elected.
func (d *decisions) nowLeading(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.led = now
}

// agree notes that a majority has lost a leader.
func (d *decisions) agree(leader fsm.NodeID, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.agreed == nil {
		d.agreed = map[fsm.NodeID]time.Time{}
	}
	if now.Sub(d.agreed[leader]) > agreementLasts {
		d.agreed[leader] = now
	}
}

// agreementLasts is how long a majority's word about a leader belongs to one loss of it.
const agreementLasts = 10 * time.Second

// ofDeath makes the decision that a node is dead from who lost it, and since
// when gossip hears nothing of it. enough is how many make the echoes' word final.
func (d *decisions) ofDeath(n fsm.NodeID, lost lossTimes, enough int, silentSince, now time.Time) decision {
	out := decision{cause: fsm.CauseSilent, of: n, began: lost.lastGood, detected: lost.noticed, confirmed: now}
	if lost.by >= enough {
		out.cause = fsm.CauseLost
	}
	if out.began.IsZero() {
		out.began = silentSince
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := d.agreed[n]; !at.IsZero() && at.After(out.began) && now.Sub(at) < agreementLasts {
		out.confirmed = at
	}
	if d.led.After(out.began) {
		out.elected = d.led
	}
	return out
}

// causeOf says why a command that moved instances did.
func causeOf(c fsm.Command) fsm.FailoverCause {
	switch c := c.(type) {
	case fsm.MoveInstance:
		return fsm.CauseMove
	case fsm.DrainNode:
		return fsm.CauseDrain
	case fsm.RemoveNode:
		return fsm.CauseRemove
	case fsm.NodeReport:
		return fsm.CauseReport
	case fsm.NodeVerdict:
		return fsm.CauseSilent
	case fsm.Batch:
		for _, one := range c.Commands {
			if cause := causeOf(one); cause != fsm.CauseUnknown {
				return cause
			}
		}
	}
	return fsm.CauseUnknown
}

// movedAt says whether the entry at index made somebody master of something.
func movedAt(s *fsm.State, index uint64) bool {
	for _, in := range s.Instances() {
		if in.Epoch == index && in.Master != "" {
			return true
		}
	}
	return false
}
