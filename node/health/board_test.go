package health

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func target(key uint32, addr string) Target {
	return Target{Key: key, Addr: netip.MustParseAddrPort(addr), Probe: Probe{Type: TypeTCP}}
}

// many are n targets with addresses of their own.
func many(n int, change func(*Target)) []Target {
	all := make([]Target, n)
	for i := range all {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		all[i] = Target{Key: uint32(i), Addr: netip.AddrPortFrom(addr, 80), Probe: Probe{Type: TypeTCP}}
		if change != nil {
			change(&all[i])
		}
	}
	return all
}

func TestManyNewTargetsMakeNoStorm(t *testing.T) {
	for _, start := range []Health{Unknown, Up} {
		s := newSimulation(20_000, 8192)
		s.board.want(many(10_000, func(t *Target) { t.Start = start }), 0)
		s.run(10 * time.Second)
		// 10000 in 2 s are 500 in 100 ms; 5000 would be a storm.
		if most := busiest(s.starts, 100*time.Millisecond); most > 800 {
			t.Errorf("start %v: %d probes began within 100 ms, want about 500", start, most)
		}
		if n := len(s.by); n != 10_000 {
			t.Errorf("start %v: %d targets were probed", start, n)
		}
	}
}

func TestIntervalIsKeptAndNeverExceeded(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.board.want(many(100, nil), 0)
	s.run(30 * time.Second)
	for c, at := range s.by {
		for i := 1; i < len(at); i++ {
			if gap := at[i] - at[i-1]; gap > 2*time.Second+2*time.Millisecond || gap < 1900*time.Millisecond {
				t.Fatalf("%v was probed %v after the last time, want 1.9 to 2 s", c.addr, gap)
			}
		}
	}
}

func TestFewUnknownTargetsAreProbedAtOnce(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.board.want(many(3, nil), 0)
	s.run(5 * time.Millisecond)
	if len(s.by) != 3 {
		t.Errorf("%d of 3 were probed within 5 ms", len(s.by))
	}
}

func TestRateAndConcurrencyAreBounded(t *testing.T) {
	s := newSimulation(1000, 50)
	s.result = func(*check, time.Duration) (outcome, time.Duration) {
		return failed("no answer"), 20 * time.Millisecond
	}
	s.board.want(many(10_000, nil), 0)
	s.run(20 * time.Second)
	if most := busiest(s.starts, time.Second); most > 1000+20 {
		t.Errorf("%d probes began within a second, want at most 1000 and the bucket", most)
	}
	if s.most > 50 {
		t.Errorf("%d were under way at a time, want at most 50", s.most)
	}
	for c, at := range s.by { // demand is five times what the rate allows: fairly shared
		if len(at) < 1 || len(at) > 3 {
			t.Fatalf("%v was probed %d times in 20 s, want about 2", c.addr, len(at))
		}
	}
}

func TestHungEndpointsDoNotDelayTheOthers(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.result = func(c *check, _ time.Duration) (outcome, time.Duration) {
		if c.addr.Addr().As4()[3]%2 == 0 {
			return failed("no answer in 1s"), time.Second
		}
		return pass, time.Millisecond
	}
	s.board.want(many(10_000, nil), 0)
	s.run(20 * time.Second)
	for c, at := range s.by {
		if len(at) < 9 {
			t.Fatalf("%v was probed %d times in 20 s", c.addr, len(at))
		}
	}
}

// Thousands of endpoints that take a connection and say nothing more keep as many helpers busy as there
// are. Whoever needs none is probed as ever, and so is, after a while, who needs one and answers.
func TestHungEndpointsOfTLSDelayNobodyElse(t *testing.T) {
	const plain, well, hung = 2000, 200, 16_000
	s := newSimulation(20_000, 8192)
	targets := many(plain+well+hung, func(t *Target) {
		if t.Start = Up; t.Key >= plain {
			t.Probe.Type = []Type{TypeHTTPS, TypeGRPC}[t.Key%2]
		}
	})
	hangs := map[netip.Addr]bool{}
	for _, target := range targets[plain+well:] {
		hangs[target.Addr.Addr()] = true
	}
	most := 0 // helpers at a time
	s.result = func(c *check, _ time.Duration) (outcome, time.Duration) {
		most = max(most, s.board.lanes[helpedLane].flying+s.board.lanes[ailingLane].flying)
		if hangs[c.addr.Addr()] {
			return failed("no answer in 1s"), time.Second
		}
		return pass, time.Millisecond
	}
	s.board.want(targets, 0)
	seen := func(d time.Duration) (of map[Type][]int, hung []int) {
		s.by = map[*check][]time.Duration{}
		s.run(d)
		of = map[Type][]int{}
		for _, c := range s.board.checks {
			if n := len(s.by[c]); hangs[c.addr.Addr()] {
				hung = append(hung, n)
			} else {
				of[c.probe.Type] = append(of[c.probe.Type], n)
			}
		}
		return of, hung
	}
	if of, _ := seen(20 * time.Second); slices.Min(of[TypeTCP]) < 9 {
		t.Errorf("while the helpers meet the hung ones, one that needs none was probed %d times in 20 s, want 10", slices.Min(of[TypeTCP]))
	}
	of, stuck := seen(40 * time.Second)
	for kind, n := range of {
		if slices.Min(n) < 19 {
			t.Errorf("%v: one that answers was probed %d times in 40 s, want 20", kind, slices.Min(n))
		}
	}
	if slices.Min(stuck) < 2 {
		t.Errorf("one that hangs was probed %d times in 40 s, want 2", slices.Min(stuck))
	}
	if most > 2048 {
		t.Errorf("%d helpers at a time, want at most a quarter of 8192", most)
	}
}

// Who was ill and answers again waits no longer among those that are.
func TestEndpointOfTLSThatAnswersAgainIsProbedInTime(t *testing.T) {
	s := newSimulation(20_000, 80) // 10 that ail at a time
	cured := netip.AddrFrom4([4]byte{10, 0, 0, 1})
	healed := false
	s.result = func(c *check, _ time.Duration) (outcome, time.Duration) {
		if healed && c.addr.Addr() == cured {
			return pass, 0
		}
		return failed("no answer in 1s"), time.Second
	}
	s.board.want(many(100, func(t *Target) { t.Probe.Type = TypeHTTPS }), 0)
	s.run(time.Minute)
	healed = true
	s.run(15 * time.Second)
	s.by = map[*check][]time.Duration{}
	s.run(20 * time.Second)
	for c, at := range s.by {
		if c.addr.Addr() == cured && len(at) < 9 {
			t.Errorf("probed %d times in 20 s, want 10", len(at))
		}
	}
}

func TestSharedEndpointIsProbedOnce(t *testing.T) {
	s := newSimulation(20_000, 8192)
	targets := make([]Target, 50)
	for i := range targets {
		targets[i] = target(uint32(i), "10.0.0.1:80")
		targets[i].VIP = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 80) // not asked for
	}
	targets[7].Probe.Interval = 5 * time.Second // another probe
	targets[8].Factor = 5                       // the same, and the others want it oftener
	dead := false
	s.result = func(*check, time.Duration) (outcome, time.Duration) {
		if dead {
			return failed("connection refused"), 0
		}
		return pass, 0
	}
	s.board.want(targets, 0)
	s.run(10 * time.Second)
	if len(s.by) != 2 {
		t.Fatalf("%d checks for 50 targets, want 2", len(s.by))
	}
	if n := len(s.starts); n > 9 {
		t.Errorf("%d probes in 10 s, want about 5 and 2", n)
	}
	dead = true
	s.run(20 * time.Second)
	for k, w := range s.board.wishes {
		if r := s.board.result(k, w); r.Health != Down || r.Why != "connection refused" {
			t.Errorf("target %d: %+v", k, r)
		}
	}
}

func TestWantKeepsWhatStays(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.board.want([]Target{target(1, "10.0.0.1:80"), target(2, "10.0.0.2:80")}, 0)
	s.run(5 * time.Second)
	before := s.board.result(1, s.board.wishes[1])
	changed := target(2, "10.0.0.2:80")
	changed.Probe.Path = "/x" // of no meaning for tcp, and another probe all the same
	s.board.want([]Target{target(1, "10.0.0.1:80"), changed, target(3, "10.0.0.1:80")}, s.now)
	after := s.board.result(1, s.board.wishes[1])
	if after != before {
		t.Errorf("what stayed was %+v, is %+v", before, after)
	}
	if r := s.board.result(2, s.board.wishes[2]); r.Probes != 0 || r.Health != Unknown {
		t.Errorf("what was changed still knows %+v", r)
	}
	if r := s.board.result(3, s.board.wishes[3]); r.Health != Up || s.board.wishes[3].version == 0 {
		t.Errorf("what joined knows %+v, told as version %d", r, s.board.wishes[3].version)
	}
	s.board.want(nil, s.now)
	s.run(5 * time.Second)
	if len(s.board.checks)+s.board.waiting()+s.board.flying() != 0 {
		t.Errorf("after all were taken away: %d checks, %d waiting, %d under way", len(s.board.checks), s.board.waiting(), s.board.flying())
	}
}

func TestProbeUnderWayOfATargetThatWentIsIgnored(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.result = func(*check, time.Duration) (outcome, time.Duration) { return failed("no answer"), time.Second }
	s.board.want([]Target{target(1, "10.0.0.1:80")}, 0)
	s.run(10 * time.Millisecond)
	s.board.want(nil, s.now)
	s.board.want([]Target{target(1, "10.0.0.1:80")}, s.now)
	s.run(990 * time.Millisecond)
	if r := s.board.result(1, s.board.wishes[1]); r.Probes != 0 {
		t.Errorf("the new target has the old one's result: %+v", r)
	}
}

func TestCountingBeginsFromWhatIsKnown(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.result = func(*check, time.Duration) (outcome, time.Duration) { return failed("connection refused"), 0 }
	warm := target(1, "10.0.0.1:80")
	warm.Start = Up
	s.board.want([]Target{warm}, 0)
	s.run(2 * time.Second)
	if r := s.board.result(1, s.board.wishes[1]); r.Health != Up || s.board.version != 0 {
		t.Fatalf("after one failure: %+v, version %d", r, s.board.version)
	}
	s.run(6 * time.Second)
	if r := s.board.result(1, s.board.wishes[1]); r.Health != Down || s.board.version == 0 {
		t.Fatalf("after three: %+v, version %d", r, s.board.version)
	}
}

func TestTakeOverProbesWithinOneInterval(t *testing.T) {
	s := newSimulation(20_000, 8192)
	slow := many(10_000, func(t *Target) { t.Start, t.Factor = Up, 5 })
	s.board.want(slow, 0)
	s.run(20 * time.Second)
	if rate := float64(len(s.starts)) / 20; rate > 1100 || rate < 900 {
		t.Errorf("%.0f probes a second by a backup, want about 1000", rate)
	}
	s.starts, s.by = nil, map[*check][]time.Duration{}
	s.board.want(many(10_000, func(t *Target) { t.Start = Up }), s.now)
	from := s.now
	s.run(2*time.Second + 10*time.Millisecond)
	if len(s.by) != 10_000 {
		t.Errorf("%d of 10000 were probed in the first interval", len(s.by))
	}
	if most := busiest(s.starts, 100*time.Millisecond); most > 1000 {
		t.Errorf("%d probes within 100 ms after the take-over at %v", most, from)
	}
}

func TestVoidProbesDecideNothing(t *testing.T) {
	s := newSimulation(20_000, 8192)
	s.result = func(*check, time.Duration) (outcome, time.Duration) { return void("no more files"), 0 }
	warm := target(1, "10.0.0.1:80")
	warm.Start = Up
	s.board.want([]Target{warm}, 0)
	s.run(time.Minute)
	r := s.board.result(1, s.board.wishes[1])
	if r.Health != Up || r.Probes != 0 || r.LastError != "no more files" || s.board.stats.Void < 25 {
		t.Errorf("%+v after %d void probes", r, s.board.stats.Void)
	}
}

func TestTargetThatCannotBeProbedSaysWhy(t *testing.T) {
	b := newBoard(100, 10, rand.Float64)
	bad := target(1, "10.0.0.1:80")
	bad.Probe.Interval = time.Nanosecond
	family := target(2, "10.0.0.1:80")
	family.Probe.Source = netip.MustParseAddr("2001:db8::1")
	none := target(3, "10.0.0.1:80")
	none.Probe.Type = TypeNone
	b.want([]Target{bad, family, none}, 0)
	for key, want := range map[uint32]string{1: "interval must be", 2: "not of the family"} {
		if r := b.result(key, b.wishes[key]); r.Health != Unknown || !strings.Contains(r.LastError, want) {
			t.Errorf("target %d: %+v, want %q", key, r, want)
		}
	}
	if _, there := b.wishes[3]; there {
		t.Error("a target of type none is there")
	}
}

func TestDeathIsFoundInTheTimePromised(t *testing.T) {
	for seed := range 20 {
		s := newSimulation(20_000, 8192)
		s.board.random = rand.New(rand.NewPCG(uint64(seed), 0)).Float64
		death := 11*time.Second + time.Duration(seed)*100*time.Millisecond
		s.result = func(_ *check, at time.Duration) (outcome, time.Duration) {
			if at >= death {
				return failed("no answer in 1s"), time.Second
			}
			return pass, 0
		}
		s.board.want([]Target{target(1, "10.0.0.1:80")}, 0)
		for s.now < time.Minute {
			s.run(10 * time.Millisecond)
			if s.board.result(1, s.board.wishes[1]).Health == Down {
				break
			}
		}
		if took := s.now - death; took > 3*2*time.Second+time.Second+50*time.Millisecond {
			t.Errorf("seed %d: found after %v, want within three intervals, the timeout and 50 ms", seed, took)
		}
	}
}

// What was due while the node stood still is not made up for at once, nor held against the endpoints.
func TestNodeThatStoodStillMakesNoStorm(t *testing.T) {
	for name, tc := range map[string]struct{ stall, run time.Duration }{
		"for a second":             {time.Second, 5 * time.Second},
		"for an hour":              {time.Hour, 5 * time.Second},
		"for most of the time":     {time.Second, 100 * time.Millisecond},
		"whenever it begins to go": {time.Second, 5 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSimulation(20_000, 8192)
			s.result = func(*check, time.Duration) (outcome, time.Duration) { return pass, 300 * time.Millisecond }
			s.board.want(many(10_000, func(t *Target) { t.Start = Up }), 0)
			s.run(4 * time.Second)
			usual := busiest(s.starts, 100*time.Millisecond)
			for range 10 {
				s.stall(tc.stall)
				s.starts = nil
				s.run(tc.run)
				// The stall itself counts as 50 ms, whose probes go out as the rate allows.
				if most := busiest(s.starts, 100*time.Millisecond); most > 2*usual {
					t.Fatalf("%d probes began within 100 ms, and %d before", most, usual)
				}
				if most, limit := busiest(s.starts, 10*time.Millisecond), 20_000/50+20_000/100+1; most > limit {
					t.Fatalf("%d probes began within 10 ms, and the rate allows %d", most, limit)
				}
			}
			if n := s.board.stats.Failures + s.board.stats.Changes; n > 0 {
				t.Errorf("taken for the endpoints' fault: %+v", s.board.stats)
			}
		})
	}
}

// A stall is noticed by its being longer than the rest that was planned, so none is long.
func TestNoRestIsSoLongThatAStallHidesInIt(t *testing.T) {
	l, err := newLoop(New(Options{}))
	must(t, err)
	defer l.close()
	if planned := l.start(); planned != 2*grace {
		t.Errorf("with nothing to do it rests for %v, want %v", planned, 2*grace)
	}
	far := target(1, "127.0.0.1:80")
	far.Probe.Interval, far.Start = time.Hour, Up
	l.p.Want([]Target{far})
	l.due()
	c := l.p.board.wishes[1].check
	for _, tc := range []struct{ due, want time.Duration }{
		{time.Hour, 2 * grace}, {7 * time.Millisecond, 7 * time.Millisecond}, {time.Microsecond, pause},
	} {
		l.p.board.lane(c).queue.move(c, l.clock.lived+tc.due)
		if planned := l.start(); planned != tc.want {
			t.Errorf("with a probe due in %v it rests for %v, want %v", tc.due, planned, tc.want)
		}
	}
}

func TestClockLeavesOutWhatWasNotLivedThrough(t *testing.T) {
	at := time.Unix(1000, 0)
	c := clock{at: at}
	step := func(passed, planned time.Duration) {
		at = at.Add(passed)
		c.advance(at, planned)
	}
	step(10*time.Millisecond, 10*time.Millisecond)
	step(5*time.Millisecond, time.Second) // woken early
	if c.lived != 15*time.Millisecond || c.stalls != 0 {
		t.Fatalf("lived %v, %d stalls", c.lived, c.stalls)
	}
	step(time.Hour, 10*time.Millisecond)
	if c.lived != 15*time.Millisecond+grace || c.stalls != 1 || c.lost != time.Hour-grace {
		t.Errorf("lived %v with an hour's pause, %d stalls", c.lived, c.stalls)
	}
	step(-time.Hour, 0)
	if c.lived < 15*time.Millisecond {
		t.Errorf("time ran backwards to %v", c.lived)
	}
}

func TestWhatServersSayIsMadeHarmless(t *testing.T) {
	long := failed("%s", strings.Repeat("é", 500)).why
	if len(long) > maxWords || !utf8.ValidString(long) || !strings.HasSuffix(long, "...") {
		t.Errorf("%d bytes: %q", len(long), long)
	}
	if got := failed("a\x00b\nc\xffd\x1b[31m").why; got != "a b c?d [31m" {
		t.Errorf("%q", got)
	}
}

func BenchmarkWant(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			targets := many(n, nil)
			board := newBoard(20_000, 8192, rand.Float64)
			for b.Loop() {
				board.want(targets, 0)
			}
		})
	}
}
