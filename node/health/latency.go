package health

import (
	"math"
	"slices"
	"time"
)

// latencies are the times of the last probes that passed.
type latencies struct {
	ring [64]uint32 // microseconds
	n    uint8      // that are filled
	next uint8

	stale    bool // what follows is of before the newest time
	p50, p99 uint32
}

func (l *latencies) add(d time.Duration) {
	l.ring[l.next] = uint32(min(max(d.Microseconds(), 0), math.MaxUint32))
	l.next = (l.next + 1) % uint8(len(l.ring))
	l.n = min(l.n+1, uint8(len(l.ring)))
	l.stale = true
}

// quantiles are the nearest ranks, and the newest time.
func (l *latencies) quantiles() (p50, p99, last time.Duration) {
	if l.n == 0 {
		return 0, 0, 0
	}
	if l.stale {
		sorted := l.ring // a copy
		part := sorted[:l.n]
		slices.Sort(part)
		l.p50, l.p99, l.stale = rank(part, 50), rank(part, 99), false
	}
	newest := l.ring[(int(l.next)+len(l.ring)-1)%len(l.ring)]
	micro := func(v uint32) time.Duration { return time.Duration(v) * time.Microsecond }
	return micro(l.p50), micro(l.p99), micro(newest)
}

// rank is the value that percent of the sorted values do not exceed.
func rank(sorted []uint32, percent int) uint32 {
	return sorted[max((percent*len(sorted)+99)/100, 1)-1]
}
