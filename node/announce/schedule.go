package announce

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

const (
	// claimFloor is the least time between two starts of an address's schedule on
	// account of foreign claims, so that two claimants do not answer each other
	// without end.
	claimFloor = time.Second
	// claimReport is the least time between two reports about one address.
	claimReport = 10 * time.Second
)

// entry is where one target stands in its schedule.
type entry struct {
	epoch uint64
	start time.Time // of the schedule that runs; in the future while held back
	due   time.Time // of the next announcement
	again time.Time // when a foreign claim has the schedule start anew; zero: not

	claims   uint64 // foreign claims since the last report
	reported time.Time
}

// schedule decides what is announced when. It is pure: all time comes in as now,
// and the same calls give the same answers. Not safe for concurrent use.
type schedule struct {
	steps   []time.Duration // since the start, ascending, not empty
	every   time.Duration   // after the last of steps
	entries map[target]entry
}

func newSchedule(steps []time.Duration, every time.Duration) *schedule {
	return &schedule{steps: steps, every: every, entries: make(map[target]entry)}
}

// want makes adverts the whole set. What is new, or has a new epoch, starts at
// now; the rest runs on. Of two adverts for one target the higher epoch counts.
func (s *schedule) want(adverts []Advert, now time.Time) {
	epochs := make(map[target]uint64, len(adverts))
	for _, a := range adverts {
		t := target{addr: a.Addr, link: a.Link}
		epochs[t] = max(epochs[t], a.Epoch)
	}
	for t := range s.entries {
		if _, ok := epochs[t]; !ok {
			delete(s.entries, t)
		}
	}
	for t, epoch := range epochs {
		e, ok := s.entries[t]
		if !ok || e.epoch != epoch {
			e.epoch = epoch
			s.entries[t] = s.started(e, now)
		}
	}
}

// step returns what is due at now, sorted by link and address, and moves it on.
// An announcement that is late by more than a step takes the missed ones with it:
// saying the same thing twice at once tells nobody more.
func (s *schedule) step(now time.Time) []Advert {
	var out []Advert
	for t, e := range s.entries {
		if !e.again.IsZero() && !e.again.After(now) {
			e = s.started(e, now)
		}
		if e.due.After(now) {
			continue
		}
		out = append(out, Advert{Addr: t.addr, Link: t.link, Epoch: e.epoch})
		e.due = s.next(e.start, now)
		s.entries[t] = e
	}
	slices.SortFunc(out, func(a, b Advert) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), a.Addr.Compare(b.Addr))
	})
	return out
}

// next is the first time after now in a schedule that began at start.
func (s *schedule) next(start, now time.Time) time.Time {
	elapsed := now.Sub(start)
	for _, d := range s.steps {
		if d > elapsed {
			return start.Add(d)
		}
	}
	last := s.steps[len(s.steps)-1]
	rounds := (elapsed-last)/s.every + 1
	return start.Add(last + rounds*s.every)
}

// wake is when step should be called next; false if nothing is wanted.
func (s *schedule) wake() (time.Time, bool) {
	var first time.Time
	for _, e := range s.entries {
		at := e.due
		if !e.again.IsZero() && e.again.Before(at) {
			at = e.again
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first, len(s.entries) > 0
}

// restart starts the schedule of every target of the lane at now, or of all if
// there is none, and returns their number.
func (s *schedule) restart(only *lane, now time.Time) int {
	n := 0
	for t, e := range s.entries {
		if only == nil || t.lane() == *only {
			s.entries[t] = s.started(e, now)
			n++
		}
	}
	return n
}

// hold says that a could not be announced: its schedule starts at until, unless
// the set has changed meanwhile.
func (s *schedule) hold(a Advert, until time.Time) {
	t := target{addr: a.Addr, link: a.Link}
	if e, ok := s.entries[t]; ok && e.epoch == a.Epoch {
		s.entries[t] = s.started(e, until)
	}
}

// claim notes that another machine says it holds t. It reports whether t is
// wanted, and, if it is time to tell the operator, how many claims there were
// since the last telling (else 0).
func (s *schedule) claim(t target, now time.Time) (wanted bool, tell uint64) {
	e, ok := s.entries[t]
	if !ok {
		return false, 0
	}
	e.claims++
	if e.reported.IsZero() || now.Sub(e.reported) >= claimReport {
		tell, e.claims, e.reported = e.claims, 0, now
	}
	if e.again.IsZero() {
		e.again = now
		if floor := e.start.Add(claimFloor); floor.After(now) {
			e.again = floor
		}
	}
	s.entries[t] = e
	return true, tell
}

// lanes returns the lanes of all targets, or only of those with something due
// at now, sorted.
func (s *schedule) lanes(onlyDue bool, now time.Time) []lane {
	set := make(map[lane]bool)
	for t, e := range s.entries {
		claimed := !e.again.IsZero() && !e.again.After(now)
		if !onlyDue || claimed || !e.due.After(now) {
			set[t.lane()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b lane) int {
		return cmp.Or(cmp.Compare(a.link, b.link), cmp.Compare(a.proto, b.proto))
	})
}

// started returns e with its schedule beginning at start.
func (s *schedule) started(e entry, start time.Time) entry {
	e.start, e.due, e.again = start, start.Add(s.steps[0]), time.Time{}
	return e
}
