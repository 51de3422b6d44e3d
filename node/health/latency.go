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
}

func (l *latencies) add(d time.Duration) {
	l.ring[l.next] = uint32(min(max(d.Microseconds(), 0), math.MaxUint32))
	l.next = (l.next + 1) % uint8(len(l.ring))
	l.n = min(l.n+1, uint8(len(l.ring)))
}

// quantiles are the nearest ranks, and the newest time.
func (l *latencies) quantiles() (p50, p99, last time.Duration) {
	if l.n == 0 {
		return 0, 0, 0
	}
	sorted := l.ring // a copy
	part := sorted[:l.n]
	slices.Sort(part)
	rank := func(percent int) time.Duration {
		at := (percent*len(part) + 99) / 100
		return time.Duration(part[max(at, 1)-1]) * time.Microsecond
	}
	newest := (int(l.next) + len(l.ring) - 1) % len(l.ring)
	return rank(50), rank(99), time.Duration(l.ring[newest]) * time.Microsecond
}
