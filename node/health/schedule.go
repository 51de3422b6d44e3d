package health

import (
	"container/heap"
	"time"
)

// Times in this file, and wherever a moment is a time.Duration, are by the clock of the prober's loop:
// it starts at zero, only grows, and stands still while the loop does not run (see clock).

// queue holds the checks that wait, the one that is due first at the front.
type queue []*check

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is heap.Interface's.
func (q *queue) Push(x any) {
	c := x.(*check)
	c.place = len(*q)
	*q = append(*q, c)
}

// Pop is heap.Interface's.
func (q *queue) Pop() any {
	old := *q
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	c.place = nowhere
	return c
}

const nowhere = -1 // a check that is not in the queue

func (q *queue) add(c *check) { heap.Push(q, c) }

func (q *queue) remove(c *check) {
	if c.place != nowhere {
		heap.Remove(q, c.place)
	}
}

// move sets when a waiting check is due.
func (q *queue) move(c *check, due time.Duration) {
	c.due = due
	if c.place != nowhere {
		heap.Fix(q, c.place)
	}
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
