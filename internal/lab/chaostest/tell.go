package chaostest

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// line is one thing that happened.
type line struct {
	at   time.Duration
	text string
}

// Tell writes the history as one can read it: what was done to whom, who answered
// for what from when to when, what the nodes believed, which writes went wrong, and
// at last what is wrong with it.
func Tell(w io.Writer, h *History, bad []Violation) error {
	var all []line
	add := func(at time.Duration, format string, args ...any) {
		all = append(all, line{at, fmt.Sprintf(format, args...)})
	}
	for _, f := range h.Faults {
		add(f.From, "fault    %s, undone at %.3fs", f.Text, f.To.Seconds())
	}
	for _, s := range h.Spans {
		add(s.From, "%s %s until %.3fs", s.Node, s.What, s.To.Seconds())
	}
	for _, v := range h.Views {
		add(v.At, "view     %s (life %d): %s", v.Node, v.Life, v.words())
	}
	for _, x := range h.Writes {
		if x.Outcome != Acknowledged {
			add(x.At, "write    %s=%s by %s %s at %.3fs: %.100s", x.Key, x.Value, x.Via, x.Outcome, x.Done.Seconds(), x.Error)
		}
	}
	for _, address := range sortedKeys(h.VIPs) {
		all = append(all, h.reigns(address)...)
	}
	if h.Healed > 0 {
		add(h.Healed, "healed   nothing is hurt any more")
	}
	if h.Converged > 0 {
		add(h.Converged, "whole    the cluster is whole")
	}
	slices.SortStableFunc(all, func(a, b line) int { return cmp.Compare(a.at, b.at) })
	for _, v := range bad {
		all = append(all, line{v.At, "WRONG    " + v.Invariant + ": " + v.Text})
	}
	for _, l := range all {
		if _, err := fmt.Fprintf(w, "%8.3f %s\n", l.at.Seconds(), l.text); err != nil {
			return fmt.Errorf("tell history: %w", err)
		}
	}
	return nil
}

func (v View) words() string {
	words := []string{"leader " + cmp.Or(v.Leader, "none")}
	if !v.Quorum {
		words = append(words, "no quorum")
	}
	for _, i := range v.Instances {
		words = append(words, fmt.Sprintf("%s: %s since %d", i.Name, cmp.Or(i.Master, "nobody"), i.Epoch))
	}
	if len(v.NotReady) > 0 {
		words = append(words, "not ready: "+strings.Join(v.NotReady, " "))
	}
	return strings.Join(words, ", ")
}

// reigns are the times in which each node answered for an address, without a break
// that is worth a word.
func (h *History) reigns(address string) (out []line) {
	const breakOff = 100 * time.Millisecond
	type reign struct{ from, to time.Duration }
	now := map[string]reign{}
	end := func(node string, r reign) {
		out = append(out, line{r.from, fmt.Sprintf("answers  %s for %s until %.3fs", node, address, r.to.Seconds())})
	}
	for _, c := range h.answersFor(address) {
		r, on := now[c.Node]
		if on && c.At-r.to > breakOff {
			end(c.Node, r)
			on = false
		}
		if !on {
			r.from = c.At
		}
		r.to = c.At
		now[c.Node] = r
	}
	for _, node := range sortedKeys(now) {
		end(node, now[node])
	}
	return out
}
