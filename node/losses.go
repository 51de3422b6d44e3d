package node

import (
	"time"

	"pontoon/fsm"
)

// loss is what a node says of another that it has lost: how long ago, when it
// says so, the last echo came back and when it called it lost. Durations,
// because clocks of nodes differ.
type loss struct {
	Node     fsm.NodeID `json:"node"`
	SilentMS float64    `json:"silent_ms"`
	LostMS   float64    `json:"lost_ms"`
}

// losses tells of all this node has lost.
func (d *detector) losses(now time.Time) []loss {
	d.mu.Lock()
	lost, at, owner := d.seen.lost, d.lostAt, d.watch.owner
	d.mu.Unlock()
	if len(lost) == 0 {
		return nil
	}
	good := map[fsm.NodeID]time.Time{}
	for _, p := range d.echo.Paths() {
		if n := owner[p.Key]; p.LastGood.After(good[n]) {
			good[n] = p.LastGood
		}
	}
	var out []loss
	for _, n := range lost {
		if since, ok := at[n]; ok && !good[n].IsZero() {
			out = append(out, loss{n, millis(now.Sub(good[n])), millis(now.Sub(since))})
		}
	}
	return out
}

// lostSince returns since when each of the lost has been so.
func lostSince(lost []fsm.NodeID, before map[fsm.NodeID]time.Time, now time.Time) map[fsm.NodeID]time.Time {
	out := make(map[fsm.NodeID]time.Time, len(lost))
	for _, n := range lost {
		out[n] = now
		if since, ok := before[n]; ok {
			out[n] = since
		}
	}
	return out
}

// lossTimes is when a node was lost, as this process's clock has it.
type lossTimes struct {
	lastGood time.Time // the last echo that came back to anybody
	noticed  time.Time // when the first one called it lost
	by       int       // how many have
}

// lossOf puts together what the reports say of a node that was lost.
func (t *reportTable) lossOf(n fsm.NodeID, now time.Time) lossTimes {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out lossTimes
	for _, r := range t.rows {
		if now.Sub(r.at) > lossAge {
			continue
		}
		for _, l := range r.Losses {
			if l.Node != n {
				continue
			}
			out.by++
			if good := r.at.Add(-asDuration(l.SilentMS)); good.After(out.lastGood) {
				out.lastGood = good
			}
			if at := r.at.Add(-asDuration(l.LostMS)); out.noticed.IsZero() || at.Before(out.noticed) {
				out.noticed = at
			}
		}
	}
	return out
}

func asDuration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// reads says whether every node of the cluster reads commands of this version,
// by their last reports.
func (t *reportTable) reads(nodes []fsm.Node, version int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range nodes {
		if t.rows[string(n.Name)].Reads < version {
			return false
		}
	}
	return true
}

// decisionOf is the decision that a report is, whose change it says the age of.
func (t *reportTable) decisionOf(cmd fsm.NodeReport) decision {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[string(cmd.Node)]
	return decision{cause: fsm.CauseReport, began: r.at.Add(-asDuration(r.ChangedMS)), confirmed: r.at}
}
