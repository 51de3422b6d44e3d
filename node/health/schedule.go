package health

import "time"

// Times in this file, and wherever a moment is a time.Duration, are by the clock of the prober's loop:
// it starts at zero, only grows, and stands still while the loop does not run (see clock).

// lane is checks that share a number of probes under way. One that is full holds up nobody but its own.
type lane struct {
	queue  agenda[*check] // those that wait
	flying int
	room   int // probes under way at most
}

// The lanes of a board. Probes by a helper cost a goroutine and memory for TLS, so there are to be fewer
// of them; and those that hang take so long that they would leave nothing for the others.
const (
	plainLane  = iota // by the loop itself
	helpedLane        // by a helper
	ailingLane        // by a helper, and the last probe failed
	lanes
)

// newLanes gives the helpers a quarter of the probes under way, half of it to those that ail. Each lane
// has room for one.
func newLanes(concurrent int) (l [lanes]lane) {
	helped := max(concurrent/8, 1)
	l[plainLane].room = max(concurrent-2*helped, 1)
	l[helpedLane].room, l[ailingLane].room = helped, helped
	return l
}

// lane is where the check waits, and what its probe under way is counted by.
func (b *board) lane(c *check) *lane { return &b.lanes[c.lane] }

// laneOf says where a check belongs from its next probe on.
func laneOf(c *check) int {
	switch {
	case c.probe.Type != TypeHTTPS && c.probe.Type != TypeGRPC:
		return plainLane
	case c.probes > 0 && !c.passed:
		return ailingLane
	}
	return helpedLane
}

// foremost is the lane with the check that is due first, of those that have room; nil: there is none.
func (b *board) foremost() (foremost *lane) {
	for i := range b.lanes {
		l := &b.lanes[i]
		if len(l.queue) == 0 || l.flying >= l.room {
			continue
		}
		if foremost == nil || l.queue.first().due < foremost.queue.first().due {
			foremost = l
		}
	}
	return foremost
}

// bucket holds the permits to send a probe.
type bucket struct {
	rate  float64 // permits a second
	size  float64 // at most this many are kept
	level float64
	at    time.Duration
}

// newBucket starts full. It keeps what comes within 20 ms, so that even after a rest the probes of a
// second are spread over it.
func newBucket(rate int) bucket {
	size := max(1, float64(rate)/50)
	return bucket{rate: float64(rate), size: size, level: size}
}

// take uses a permit, or says after what time there will be one.
func (b *bucket) take(now time.Duration) (wait time.Duration, ok bool) {
	if now > b.at {
		b.level = min(b.size, b.level+(now-b.at).Seconds()*b.rate)
		b.at = now
	}
	if b.level >= 1 {
		b.level--
		return 0, true
	}
	return time.Duration((1 - b.level) / b.rate * float64(time.Second)), false
}

// clock is the time the prober has lived through. A moment at which the loop did not run although it
// was to (the machine was suspended, the process stopped, the processors taken) is left out: it is
// neither made up for by a storm of probes that are overdue, nor held against answers that came while
// nobody looked.
type clock struct {
	lived  time.Duration
	lost   time.Duration // that was left out
	stalls uint64        // moments that were
	at     time.Time     // of the last reading
}

// grace is by how much the loop may be late and it still counts as running.
const grace = 50 * time.Millisecond

// advance reads the clock at now, when the loop wanted to rest for the time planned. A moment that was
// left out counts as grace all the same: a node that is late at every turn is to probe more slowly, not
// never. No rest is longer than twice the grace, so that three times as slowly is the worst.
func (c *clock) advance(now time.Time, planned time.Duration) {
	passed := max(0, now.Sub(c.at))
	c.at = now
	if passed > planned+grace {
		c.stalls++
		c.lost += passed - grace
		passed = grace
	}
	c.lived += passed
}
