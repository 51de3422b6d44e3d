package transport

const (
	// replDigestRounds is in how many rounds running a bucket may differ, each time
	// in another way, before it is repaired.
	replDigestRounds = 5
	// replDigestRest is for how many rounds at most a bucket is left alone that
	// repairs do not help.
	replDigestRest = 8
)

// replSuspects decides which buckets of a peer are repaired. It remembers only
// buckets that differed in both comparisons of the last round.
type replSuspects struct {
	round  int
	streak map[uint32]int // in how many rounds running, without a repair
	futile map[uint32]replFutile
}

// replFutile is a bucket that was repaired and has not been equal since.
type replFutile struct {
	rest  int // rounds it was left alone after the last repair
	until int // the round from which it may be repaired again
}

// replVerdict is what a round leads to.
type replVerdict struct {
	repair []uint32
	again  int // of them had been repaired before and were not equal since
}

// judge takes the two comparisons of a round. What is on its way makes buckets
// differ, but differently each time; what differs in the same way twice is there to
// stay. A bucket that never holds still is repaired too when it has differed
// for long enough, since a lasting difference may hide among the passing ones. What
// a repair does not help (the peer's table is full) is repaired less and less often.
func (s *replSuspects) judge(first, second []replDifference) (v replVerdict) {
	s.round++
	before := make(map[uint32]uint64, len(first))
	for _, d := range first {
		before[d.bucket] = d.xor
	}
	streak, futile := map[uint32]int{}, map[uint32]replFutile{}
	for _, d := range second {
		xor, ok := before[d.bucket]
		if !ok {
			continue
		}
		past, again := s.futile[d.bucket]
		n := s.streak[d.bucket] + 1
		if (xor != d.xor && n < replDigestRounds) || (again && s.round < past.until) {
			streak[d.bucket] = n
			if again {
				futile[d.bucket] = past
			}
			continue
		}
		v.repair = append(v.repair, d.bucket)
		rest := min(max(1, 2*past.rest), replDigestRest)
		futile[d.bucket] = replFutile{rest: rest, until: s.round + rest}
		if again {
			v.again++
		}
	}
	s.streak, s.futile = streak, futile
	return v
}
