package health

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
)

// subject is what is probed: targets of the same subject share one check.
type subject struct {
	addr   netip.AddrPort // that the probe asks; the port is 0 for icmp
	vip    netip.AddrPort // that it is addressed to; zero: addr
	tunnel bool
	probe  Probe // with defaults, and without what the fields above say
}

// subjectOf reads what a target asks for.
func subjectOf(t Target) (subject, error) {
	p := t.Probe.withDefaults()
	if err := p.Validate(); err != nil {
		return subject{}, err
	}
	port := cmp.Or(p.Port, t.Addr.Port())
	s := subject{addr: netip.AddrPortFrom(t.Addr.Addr().Unmap(), port), probe: p}
	if !s.addr.Addr().IsValid() {
		return subject{}, fmt.Errorf("probe: the target has no address")
	}
	if port == 0 && p.Type != TypeICMP {
		return subject{}, fmt.Errorf("probe: the target has no port")
	}
	if src := p.Source.Unmap(); src.IsValid() && src.Is4() != s.addr.Addr().Is4() {
		return subject{}, fmt.Errorf("probe: source %v is not of the family of %v", src, s.addr.Addr())
	}
	s.probe.Port, s.probe.Source = 0, p.Source.Unmap()
	if p.ThroughVIP {
		vip := t.VIP.Addr().Unmap()
		if !vip.IsValid() || vip.Is4() != s.addr.Addr().Is4() {
			return subject{}, fmt.Errorf("probe: through a VIP of another family than %v", s.addr.Addr())
		}
		s.vip, s.tunnel = netip.AddrPortFrom(vip, cmp.Or(p.Port, t.VIP.Port())), t.Tunnel
	}
	if p.Type == TypeICMP {
		s.addr = netip.AddrPortFrom(s.addr.Addr(), 0)
		if s.vip.IsValid() {
			s.vip = netip.AddrPortFrom(s.vip.Addr(), 0)
		}
	}
	return s, nil
}

// check is one subject under observation.
type check struct {
	subject
	factor  uint8
	machine machine
	since   time.Time
	version uint64 // of the board, when the verdict last changed

	entry      // when it is to be probed
	lane   int // it waits in, or is under way by
	begun  time.Duration
	flying bool // a probe is under way
	gen    uint64

	at        time.Time
	passed    bool
	row       uint64 // probes, up to the last, that ended like it
	why       string // of the newest failure
	probes    uint64
	failures  uint64
	latencies latencies

	prepared prepared // by the loop, on the first probe
}

func (c *check) interval() time.Duration { return time.Duration(c.factor) * c.probe.Interval }

func (c *check) rules() rules {
	return rules{rise: int(c.probe.Rise), fall: int(c.probe.Fall), interval: c.interval()}
}

// wish is one target and its check; check is nil when it cannot be probed, and why then says why.
type wish struct {
	check   *check
	version uint64 // of the board, when its verdict became another one by its joining a check
	why     string
}

// outcome is what one probe ended with.
type outcome struct {
	passed bool
	void   bool   // it says nothing about the endpoint: this node was in the way
	again  bool   // with void: soon, not only after the interval
	late   bool   // there was no answer in time, by a clock that does not know of stalls
	why    string // in plain words, unless it passed
	took   time.Duration
}

var pass = outcome{passed: true}

func failed(format string, args ...any) outcome {
	return outcome{why: clean(fmt.Sprintf(format, args...))}
}

func void(format string, args ...any) outcome {
	return outcome{void: true, why: clean(fmt.Sprintf(format, args...))}
}

// maxWords bounds what is said about one probe, in bytes. Some of it is what servers say of themselves,
// and all of it ends up in replicated state.
const maxWords = 140

// clean makes one line of valid text of words, not longer than maxWords.
func clean(words string) string {
	words = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(words, "?"))
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords-3], "") + "..."
	}
	return words
}

// board is everything the prober knows. It decides which probe is sent when and what their outcomes
// mean; it sends none and reads no clock.
type board struct {
	random func() float64 // in [0, 1)

	wishes  map[uint32]wish
	keys    []uint32 // of wishes, growing; replaced and never changed
	checks  map[subject]*check
	lanes   [lanes]lane
	bucket  bucket
	gen     uint64
	version uint64
	stats   Stats // its counters only
}

func newBoard(rate, concurrent int, random func() float64) board {
	return board{
		random: random, lanes: newLanes(concurrent), bucket: newBucket(rate),
		wishes: map[uint32]wish{}, checks: map[subject]*check{},
	}
}

// want replaces what is wanted. Checks that stay keep their counters and their time.
func (b *board) want(targets []Target, now time.Duration) {
	b.gen++
	before := b.wishes
	b.wishes = make(map[uint32]wish, len(targets))
	var fresh []*check
	for _, t := range targets {
		if t.Probe.Type == TypeNone {
			continue
		}
		s, err := subjectOf(t)
		if err != nil {
			b.wishes[t.Key] = wish{why: err.Error()}
			continue
		}
		c, known := b.checks[s]
		if !known {
			c = &check{subject: s, machine: machine{health: t.Start, faded: now}}
			b.checks[s] = c
			fresh = append(fresh, c)
		}
		b.join(c, t, now)
		w := wish{check: c, version: before[t.Key].version}
		if before[t.Key].check != c {
			w.version = 0
			if c.machine.health != t.Start {
				b.version++
				w.version = b.version
			}
		}
		b.wishes[t.Key] = w
	}
	for s, c := range b.checks {
		if c.gen != b.gen {
			b.lane(c).queue.remove(c)
			delete(b.checks, s)
		}
	}
	b.keys = slices.Sorted(maps.Keys(b.wishes))
	b.spread(fresh, now)
}

// join lets a target be served by a check.
func (b *board) join(c *check, t Target, now time.Duration) {
	factor, before := max(t.Factor, 1), c.factor
	if c.machine.health == Unknown && c.probes == 0 && t.Start != Unknown {
		c.machine.health = t.Start // the first that knows anything is believed
		if before != 0 {           // and those that joined before are to hear of it
			b.version++
			c.version = b.version
		}
	}
	if c.gen != b.gen {
		c.gen, c.factor = b.gen, factor
	} else {
		c.factor = min(c.factor, factor)
	}
	// Probed more often from now on, as on a take-over: within the new interval, each somewhere in it.
	if latest := now + c.interval(); before > c.factor && c.place != 0 && c.due > latest {
		b.lane(c).queue.move(c, now+b.share(c.interval()))
	}
}

// share is a random part of d.
func (b *board) share(d time.Duration) time.Duration {
	return time.Duration(b.random() * float64(d))
}

// perFresh is the room that each new check gets, when they have not been probed before.
const perFresh = time.Millisecond

// spread gives new checks their first time: anywhere in their interval. Of what nothing is known yet
// something is to be known soon, as far as that is no storm.
func (b *board) spread(fresh []*check, now time.Duration) {
	for _, c := range fresh {
		room := c.interval()
		if c.machine.health == Unknown {
			room = min(room, time.Duration(len(fresh))*perFresh)
		}
		b.enqueue(c, now+b.share(room))
	}
}

// soon lets the checks of these targets be probed next, as the rate allows.
func (b *board) soon(keys []uint32, now time.Duration) {
	for _, k := range keys {
		if c := b.wishes[k].check; c != nil && c.place != 0 && c.due > now {
			b.lane(c).queue.move(c, now)
		}
	}
}

// idle is how long the loop rests at most.
const idle = time.Minute

// next takes the check that is due, or says how long none will be.
func (b *board) next(now time.Duration) (c *check, wait time.Duration) {
	l := b.foremost()
	if l == nil {
		return nil, idle
	}
	c = l.queue.first()
	if c.due > now {
		return nil, min(c.due-now, idle)
	}
	if wait, ok := b.bucket.take(now); !ok {
		return nil, wait
	}
	b.stats.Late = now - c.due
	l.queue.remove(c)
	c.flying, c.begun = true, now
	l.flying++
	return c, 0
}

// enqueue lets a check wait for its next probe.
func (b *board) enqueue(c *check, due time.Duration) {
	c.due, c.lane = due, laneOf(c)
	b.lane(c).queue.add(c)
}

// land notes that the probe of a check is not under way any more.
func (b *board) land(c *check) {
	c.flying = false
	b.lane(c).flying--
}

// flying is how many probes are under way.
func (b *board) flying() (n int) {
	for i := range b.lanes {
		n += b.lanes[i].flying
	}
	return n
}

// jitter is by what part an interval is shortened at most. It is never made longer: the time in which
// a death is found is promised in intervals.
const jitter = 0.05

// soonAgain is when a probe is repeated that this node itself spoiled.
const soonAgain = 100 * time.Millisecond

// finish takes in how a probe ended, now by the loop's clock and at by that of the day. changed: its
// verdict is another one.
func (b *board) finish(c *check, o outcome, now time.Duration, at time.Time) (changed bool) {
	b.land(c)
	if c.gen != b.gen {
		return false // nobody wants it any more
	}
	step := c.interval()
	if o.void && o.again {
		step = min(step, soonAgain)
	}
	defer b.enqueue(c, max(now, c.begun+step-b.share(time.Duration(jitter*float64(step))))) // where this outcome puts it
	if o.void {
		b.stats.Void++
		if !o.again {
			c.why = o.why
		}
		return false
	}
	b.stats.Probes++
	c.probes++
	if c.row++; c.passed != o.passed {
		c.row = 1
	}
	c.at, c.passed = at, o.passed
	if o.passed {
		if o.took > 0 {
			c.latencies.add(o.took)
		}
	} else {
		b.stats.Failures++
		c.failures++
		c.why = o.why
	}
	was := c.machine.health
	if c.machine, changed = c.machine.step(c.rules(), o.passed, now); !changed {
		return false
	}
	if c.machine.health != was {
		c.since = at
		b.stats.Changes++
	}
	b.version++
	c.version = b.version
	return true
}

// abandon takes a probe back that will never end.
func (b *board) abandon(c *check, now time.Duration) {
	b.land(c)
	if c.gen == b.gen {
		b.enqueue(c, now)
	}
}

// result is what there is to say about a target.
func (b *board) result(key uint32, w wish) Result {
	c := w.check
	if c == nil {
		return Result{Key: key, LastError: w.why}
	}
	r := Result{
		Key: key, Health: c.machine.health, Up: c.machine.health == Up, Since: c.since, Flapping: c.machine.flapping,
		At: c.at, Passed: c.passed, LastError: c.why, Probes: c.probes, Failures: c.failures,
		Row: c.row, Flying: c.flying,
	}
	if r.Health == Down {
		r.Why = c.why
		if c.machine.flapping {
			r.Why = fmt.Sprintf("%s (flapping: comes back after %d passes in a row)", cmp.Or(c.why, "it went down too often"), c.machine.needed(c.rules()))
		}
	}
	r.P50, r.P99, r.Last = c.latencies.quantiles()
	return r
}
