package node

import (
	"slices"
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
	Cut      bool       `json:"cut,omitempty"` // not the node, but a link of it
}

// losses tells of all this node has lost.
func (d *detector) losses(now time.Time) []loss {
	d.mu.Lock()
	seen, at, cutAt, w := d.seen, d.lostAt, d.cutAt, d.watch
	d.mu.Unlock()
	if len(seen.lost) == 0 && len(seen.links) == 0 {
		return nil
	}
	good, goodOn := map[fsm.NodeID]time.Time{}, map[linkRef]time.Time{}
	for _, p := range d.echo.Paths() {
		n := w.owner[p.Key]
		good[n] = later(good[n], p.LastGood)
		goodOn[linkRef{n, p.Remote}] = later(goodOn[linkRef{n, p.Remote}], p.LastGood)
	}
	var out []loss
	for _, n := range seen.lost {
		if since, ok := at[n]; ok && !good[n].IsZero() {
			out = append(out, loss{Node: n, SilentMS: millis(now.Sub(good[n])), LostMS: millis(now.Sub(since))})
		}
	}
	for _, l := range seen.links {
		if since, ok := cutAt[l]; ok && !goodOn[l].IsZero() {
			out = append(out, loss{Node: l.Node, SilentMS: millis(now.Sub(goodOn[l])), LostMS: millis(now.Sub(since)), Cut: true})
		}
	}
	return out
}

// lostSince returns since when each of the lost has been so.
func lostSince[T comparable](lost []T, before map[T]time.Time, now time.Time) map[T]time.Time {
	out := make(map[T]time.Time, len(lost))
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
func (t *reportTable) lossOf(n fsm.NodeID, now time.Time) lossTimes { return t.timesOf(n, false, now) }

// timesOf is lossOf, or with cut the same of the node's links.
func (t *reportTable) timesOf(n fsm.NodeID, cut bool, now time.Time) lossTimes {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out lossTimes
	for _, r := range t.rows {
		if now.Sub(r.at) > lossAge {
			continue
		}
		for _, l := range r.Losses {
			if l.Node != n || l.Cut != cut {
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

// decisionOf is the decision that a report is, whose change it says the age of, or that others find the
// node cut off.
func (t *reportTable) decisionOf(cmd fsm.NodeReport, now time.Time) decision {
	t.mu.Lock()
	r := t.rows[string(cmd.Node)]
	t.mu.Unlock()
	if !cmd.LinksUp && r.LinksUp {
		cut := t.timesOf(cmd.Node, true, now)
		return decision{cause: fsm.CauseCut, of: cmd.Node, began: cut.lastGood, detected: cut.noticed, confirmed: now}
	}
	return decision{cause: fsm.CauseReport, of: cmd.Node, began: r.at.Add(-asDuration(r.ChangedMS)), confirmed: r.at}
}

// believe takes what others said when they were asked about a lost leader into
// their reports, as if they had reported it, until they report themselves. So who is
// elected then need not wait for that.
func (t *reportTable) believe(leader fsm.NodeID, claims []claim, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range claims {
		r, ok := t.rows[c.Node]
		if !ok || !c.Lost {
			continue
		}
		r.lose(leader, c.Loss, now)
		for _, l := range c.More {
			r.lose(l.Node, &l, now)
		}
		t.rows[c.Node] = r
	}
}

// lose has the report say as well that a node is lost; l, if that is known, is since when, as it is said at now.
func (r *timedReport) lose(n fsm.NodeID, l *loss, now time.Time) {
	if slices.Contains(r.Lost, n) {
		return
	}
	r.Lost = append(slices.Clone(r.Lost), n)
	if l == nil {
		return
	}
	// The report is older than the loss: its durations count from its own time.
	since := float64(now.Sub(r.at)) / float64(time.Millisecond)
	r.Losses = append(slices.Clone(r.Losses), loss{Node: n, SilentMS: l.SilentMS - since, LostMS: l.LostMS - since})
}
