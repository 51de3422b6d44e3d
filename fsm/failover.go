package fsm

import (
	"cmp"
	"slices"
	"time"
)

// Failover is one change of an instance's master with its timeline, as the new
// master recorded it.
type Failover struct {
	Instance string        `json:"instance"`
	From     NodeID        `json:"from"`
	To       NodeID        `json:"to"`
	Epoch    uint64        `json:"epoch"` // of the mastership that began
	At       time.Time     `json:"at"`    // by the new master's clock, when it had applied the change
	Cause    FailoverCause `json:"cause"`
	Parts    FailoverParts `json:"parts_ms"`
}

// FailoverCause says why an instance moved.
type FailoverCause string

// The causes of a Failover.
const (
	CauseLost    FailoverCause = "lost"    // a majority had no answer from the master's data plane on any path
	CauseSilent  FailoverCause = "silent"  // gossip lost the master, and its kernel did not answer, or its grace was over
	CauseCut     FailoverCause = "cut_off" // most nodes on one of its links had no answer from the master's data plane there
	CauseReport  FailoverCause = "report"  // the master said of itself that it cannot serve: a link, its data plane, its flows
	CauseMove    FailoverCause = "move"    // asked for
	CauseDrain   FailoverCause = "drain"   // the master was drained, to leave or for other work
	CauseRemove  FailoverCause = "remove"  // the master was removed from the cluster
	CauseUnknown FailoverCause = "unknown" // the leader that knew it is gone
)

// Planned says whether somebody asked for it.
func (c FailoverCause) Planned() bool {
	return c == CauseMove || c == CauseDrain || c == CauseRemove
}

// FailoverParts tells when each step of a Failover was done, in milliseconds
// since the last sign of life of the old master (its last answered echo), or
// since the wish when it was asked for. 0 is not known, or no such step. Every
// duration was taken by one clock; where two nodes' durations are added, the
// event they share was seen by both, up to one trip through the network apart.
type FailoverParts struct {
	Detected    float64 `json:"detected,omitempty"`     // the first node called it lost
	Confirmed   float64 `json:"confirmed,omitempty"`    // a majority had
	Elected     float64 `json:"elected,omitempty"`      // the leader who decided was elected, if that came later than the beginning
	Committed   float64 `json:"committed,omitempty"`    // the decision was
	Announced   float64 `json:"announced,omitempty"`    // the new master had told the network
	FirstPacket float64 `json:"first_packet,omitempty"` // the new master forwarded one
}

// FailoversKept is how many timelines the state keeps.
const FailoversKept = 32

// maxFailoverPart bounds a part of a timeline: a day.
const maxFailoverPart = 24 * 60 * 60 * 1000

// list returns the parts in the order of the steps.
func (p FailoverParts) list() []float64 {
	return []float64{p.Detected, p.Confirmed, p.Elected, p.Committed, p.Announced, p.FirstPacket}
}

// Total is the last step known, 0 if there is none.
func (p FailoverParts) Total() float64 { return slices.Max(p.list()) }

// Failovers returns the newest timelines, newest first. They are shared: read only.
func (s *State) Failovers() []Failover { return s.failovers }

// RecordFailover adds a timeline, in place of an earlier one of the same
// instance and epoch. The state keeps the newest FailoversKept. Refused with
// ErrInvalid.
type RecordFailover struct {
	Failover Failover `json:"failover"`
}

func (RecordFailover) kind() string { return "record_failover" }

func (c RecordFailover) apply(d *draft) error {
	f := c.Failover
	chk := &checker{object: "failover of instance " + shown(f.Instance)}
	chk.name("instance", f.Instance)
	chk.nodeName("to", f.To)
	if f.From != "" {
		chk.nodeName("from", f.From)
	}
	if f.Epoch == 0 || f.Epoch >= d.index {
		chk.bad("epoch", f.Epoch, "must be that of a mastership which is decided")
	}
	if f.At.IsZero() {
		chk.bad("at", nil, "is missing")
	}
	f.At = chk.instant("at", f.At)
	oneOf(chk, "cause", f.Cause, CauseLost, CauseSilent, CauseCut, CauseReport, CauseMove, CauseDrain, CauseRemove, CauseUnknown)
	for _, ms := range f.Parts.list() {
		if !(ms >= 0 && ms <= maxFailoverPart) {
			chk.bad("parts_ms", ms, "must be 0 to %d", maxFailoverPart)
		}
	}
	if err := chk.err(); err != nil {
		return err
	}
	d.failovers = withFailover(d.failovers, f)
	return nil
}

// withFailover returns a new list, by epoch and then instance.
func withFailover(list []Failover, f Failover) []Failover {
	out := make([]Failover, 0, len(list)+1)
	for _, old := range list {
		if old.Epoch != f.Epoch || old.Instance != f.Instance {
			out = append(out, old)
		}
	}
	out = append(out, f)
	slices.SortFunc(out, func(a, b Failover) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(a.Instance, b.Instance))
	})
	return out[:min(len(out), FailoversKept)]
}

// NewFailovers lists what next knows and prev does not, oldest first.
func NewFailovers(prev, next *State) []Failover {
	if len(prev.failovers) == len(next.failovers) && (len(next.failovers) == 0 || &prev.failovers[0] == &next.failovers[0]) {
		return nil // the list is copied on write
	}
	var out []Failover
	for _, f := range slices.Backward(next.failovers) {
		if !slices.ContainsFunc(prev.failovers, func(o Failover) bool { return o.Epoch == f.Epoch && o.Instance == f.Instance }) {
			out = append(out, f)
		}
	}
	return out
}
