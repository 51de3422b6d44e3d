package health

import (
	"math"
	"time"
)

// Damping, after RFC 2439: each fall costs a point, points fade by half in halfLife, and an endpoint
// that has gathered flapsAt of them is flapping until it is back below calmAt. While it is flapping,
// coming up takes twice, four, eight or sixteen times the passes, by its points; but never more than
// fit into longestHold, so that a damped endpoint that is well again is back soon.
const (
	halfLife    = time.Minute
	flapsAt     = 2.5 // three falls, if they come within half a minute or so
	calmAt      = 1.0
	maxPoints   = 6.0
	longestHold = time.Minute
)

// rules are what a machine decides by.
type rules struct {
	rise, fall int
	interval   time.Duration // between two probes, as it is kept
}

// machine concludes from probes whether an endpoint is up. It is a value, and step is pure.
type machine struct {
	health   Health
	run      int // probes in a row that contradict health
	flapping bool
	points   float64 // at the time faded
	faded    time.Duration
}

// step takes in one probe that ended at now, by a clock that only grows; changed says that the
// health, or whether it is flapping, is another one.
//
// Nothing known yet, one pass is enough to be up: an unknown endpoint is used as if it were, and so a
// pass changes nothing but the word. Only failures must be as many in a row as ever.
func (m machine) step(r rules, passed bool, now time.Duration) (next machine, changed bool) {
	was := m
	m.fade(now)
	switch {
	case passed == (m.health == Up) && m.health != Unknown:
		m.run = 0
	case passed:
		if m.run++; m.health == Unknown || m.run >= m.needed(r) {
			m.health, m.run = Up, 0
		}
	default:
		if m.run++; m.run >= r.fall {
			if m.health == Up {
				m.points = min(m.points+1, maxPoints)
				m.flapping = m.flapping || m.points >= flapsAt
			}
			m.health, m.run = Down, 0
		}
	}
	return m, m.health != was.health || m.flapping != was.flapping
}

// fade lets points go with time.
func (m *machine) fade(now time.Duration) {
	if now > m.faded {
		m.points *= math.Exp2(-float64(now-m.faded) / float64(halfLife))
	}
	m.faded = max(m.faded, now)
	if m.points < calmAt {
		m.flapping = false
	}
}

// needed is how many passes in a row bring an endpoint up that is down.
func (m machine) needed(r rules) int {
	if !m.flapping {
		return r.rise
	}
	factor := 1 << max(1, min(int(math.Ceil(m.points))-2, 4))
	bound := r.rise
	if r.interval > 0 {
		bound = max(bound, int(longestHold/r.interval))
	}
	return min(r.rise*factor, bound)
}
