package transport

import "math/bits"

// The lag's histogram has eight buckets for each doubling from 65 µs to 68 s, so
// a quantile is right within 7 %.
const (
	replLagLowest  = 16 // two to this many nanoseconds is where the buckets begin
	replLagOctaves = 20
	replLagBuckets = 1 + replLagOctaves*8
	replLagSlots   = 7 // six whole ones and the running one
	replLagSlot    = int64(10e9)
)

// replLags is how long records took to be acknowledged in the last minute: one
// histogram for each ten seconds. Its size is fixed, and a frame costs one
// addition.
type replLags struct {
	slots [replLagSlots][replLagBuckets]uint32
	slot  int64 // the running one, counted from the clock's zero
}

// add counts records that took lag, at now; both in nanoseconds.
func (l *replLags) add(now, lag int64, records uint64) {
	l.rotate(now)
	l.slots[l.slot%replLagSlots][replLagBucket(lag)] += uint32(records)
}

// rotate empties the slots whose time is over.
func (l *replLags) rotate(now int64) {
	slot := now / replLagSlot
	if slot-l.slot >= replLagSlots {
		*l = replLags{slot: slot}
		return
	}
	for l.slot < slot {
		l.slot++
		l.slots[l.slot%replLagSlots] = [replLagBuckets]uint32{}
	}
}

// quantiles returns, for each fraction in rising order, the lag that this part of
// the records did not exceed; all are 0 if there was none.
func (l *replLags) quantiles(now int64, fractions ...float64) []int64 {
	l.rotate(now)
	var sum [replLagBuckets]uint64
	total := uint64(0)
	for i := range l.slots {
		for b, n := range l.slots[i] {
			sum[b] += uint64(n)
			total += uint64(n)
		}
	}
	out := make([]int64, len(fractions))
	if total == 0 {
		return out
	}
	b, passed := 0, sum[0]
	for i, fraction := range fractions {
		for float64(passed) < fraction*float64(total) && b < replLagBuckets-1 {
			b++
			passed += sum[b]
		}
		out[i] = replLagOf(b)
	}
	return out
}

func replLagBucket(lag int64) int {
	if lag < 1<<replLagLowest {
		return 0
	}
	octave := bits.Len64(uint64(lag)) - 1
	eighth := int(lag>>(octave-3)) & 7
	return min(1+(octave-replLagLowest)*8+eighth, replLagBuckets-1)
}

// replLagOf is the middle of a bucket.
func replLagOf(bucket int) int64 {
	if bucket == 0 {
		return 1 << (replLagLowest - 1)
	}
	octave, eighth := replLagLowest+(bucket-1)/8, int64((bucket-1)%8)
	width := int64(1) << (octave - 3)
	return (8+eighth)*width + width/2
}

const replRateSlots = 8

// replRate counts what happens in a second.
type replRate struct {
	counts [replRateSlots]uint64
	second int64 // the running one
}

func (r *replRate) add(now int64, n uint64) {
	r.rotate(now)
	r.counts[r.second%replRateSlots] += n
}

func (r *replRate) rotate(now int64) {
	second := now / 1e9
	if second-r.second >= replRateSlots {
		*r = replRate{second: second}
		return
	}
	for r.second < second {
		r.second++
		r.counts[r.second%replRateSlots] = 0
	}
}

// perSecond is the mean over the last whole seconds.
func (r *replRate) perSecond(now int64) float64 {
	r.rotate(now)
	total, seconds := uint64(0), min(r.second, replRateSlots-1)
	for i := int64(1); i <= seconds; i++ {
		total += r.counts[(r.second-i)%replRateSlots]
	}
	if seconds == 0 {
		return 0
	}
	return float64(total) / float64(seconds)
}
