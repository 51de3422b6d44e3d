package traffic

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Window observes the connections during one failure. Beginning another one
// ends the measuring of gaps for this one, so take the Result first.
type Window struct {
	c     *Clients
	conns []*clientConn // alive at the beginning
}

// Result is what the connections felt during a window. Survived, Reset,
// Stalled and Corrupted add up to Connections.
type Result struct {
	Connections int // open when the window began
	Survived    int // alive and past the last mark
	Reset       int // ended by an error or by the other side
	Stalled     int // open, but without progress since the last mark
	Corrupted   int // carried something that was not sent; counted only here
	// Blackout is the longest time any connection went without an answer, P50
	// and P99 the percentiles over the connections of each one's longest. A
	// stalled one counts with the time until now, a lost one with the time
	// until its loss was seen. See the package comment: one send interval is
	// normal.
	Blackout, P50, P99 time.Duration
	// Errors are the reasons why connections were lost, the most frequent
	// first, each with how often it was seen.
	Errors []string
}

// maxErrors is how many reasons a Result holds.
const maxErrors = 5

// Window begins an observation of the connections that are alive now, with a
// mark.
func (c *Clients) Window() *Window {
	w := &Window{c: c}
	for _, cc := range c.snapshot() {
		cc.mu.Lock()
		if cc.lost == nil {
			cc.maxGap = 0
			cc.mark = cc.sent
			w.conns = append(w.conns, cc)
		}
		cc.mu.Unlock()
	}
	return w
}

// Mark asks every connection to prove itself anew: only a frame sent from now
// on, and answered, is progress.
func (w *Window) Mark() {
	for _, cc := range w.conns {
		cc.mu.Lock()
		cc.mark = cc.sent
		cc.mu.Unlock()
	}
}

// Pending counts the living connections without progress since the mark.
func (w *Window) Pending() int {
	n := 0
	for _, cc := range w.conns {
		if cc.pending() {
			n++
		}
	}
	return n
}

// Wait waits until no connection is pending, or until ctx ends, and then says
// how many still were. Lost ones are not waited for; see Result.
func (w *Window) Wait(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		n := w.Pending()
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for progress: %d of %d connections stand still: %w",
				n, len(w.conns), context.Cause(ctx))
		}
	}
}

// Result sums up the window so far.
func (w *Window) Result() Result {
	r, _ := w.result()
	return r
}

func (w *Window) result() (r Result, gaps []time.Duration) {
	r.Connections = len(w.conns)
	now := w.c.now()
	gaps = make([]time.Duration, 0, len(w.conns))
	reasons := map[string]int{}
	for _, cc := range w.conns {
		cc.mu.Lock()
		until := now
		switch {
		case cc.corrupt:
			r.Corrupted++
		case cc.lost != nil:
			r.Reset++
		case cc.acked <= cc.mark:
			r.Stalled++
		default:
			r.Survived++
		}
		if cc.lost != nil {
			until = cc.lostAt
			reasons[cc.reason()]++
		}
		gaps = append(gaps, max(cc.maxGap, until-cc.last))
		cc.mu.Unlock()
	}
	slices.Sort(gaps)
	r.P50, r.P99, r.Blackout = percentile(gaps, 50), percentile(gaps, 99), percentile(gaps, 100)
	r.Errors = topReasons(reasons)
	return r, gaps
}

// topReasons puts the most frequent reasons into words.
func topReasons(reasons map[string]int) []string {
	keys := slices.Sorted(maps.Keys(reasons))
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(reasons[b], reasons[a]) })
	var out []string
	for _, k := range keys[:min(len(keys), maxErrors)] {
		out = append(out, fmt.Sprintf("%d times: %s", reasons[k], k))
	}
	return out
}

// percentile is the smallest value that p percent of the sorted values do not
// exceed (nearest rank), 0 of none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(0, rank-1)]
}

// Gaps are the longest times that each connection of the window went without an
// answer so far, sorted; Result describes them.
func (w *Window) Gaps() []time.Duration {
	_, gaps := w.result()
	return gaps
}
