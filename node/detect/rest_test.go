package detect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A session rests for as long as was agreed on, whatever the timers of both sides; who does not come back
// within that time is found missing.
func TestARestingSessionIsWaitedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.IntRange(10, 300)
		drawn := func(of string) Config {
			return Config{
				DesiredMinTx: time.Duration(ms.Draw(t, of+" tx")) * time.Millisecond, RequiredMinRx: time.Duration(ms.Draw(t, of+" rx")) * time.Millisecond,
				DetectMult: uint8(rapid.IntRange(2, 10).Draw(t, of+" mult")),
			}
		}
		cfg := drawn("a")
		l := newLink(cfg, drawn("b"), time.Duration(rapid.IntRange(0, 5000).Draw(t, "delay"))*time.Microsecond)
		l.run(10 * time.Second)
		span := time.Duration(rapid.IntRange(3000, 10000).Draw(t, "span")) * time.Millisecond
		slow := cfg
		slow.DesiredMinTx = max(cfg.DesiredMinTx, span/time.Duration(cfg.DetectMult))
		l.do(0, Configure{slow})
		for wait := 0; !l.ends[0].resting(); wait++ {
			if wait > 2000 {
				t.Fatal("the neighbour does not agree")
			}
			l.run(time.Millisecond)
		}
		left := Resume{Local: l.ends[0].LocalDiscr, Remote: l.ends[0].RemoteDiscr}
		l.ends[0] = Machine{} // the process is gone
		away := time.Duration(rapid.Int64Range(0, int64(2*span)).Draw(t, "away"))
		for until := l.now.Add(away); l.now.Before(until) && l.ends[1].SessionState == Up; {
			if at := l.ends[1].Deadline(); at.Before(until) {
				l.now = at
				l.do(1, Tick{})
				l.wire = nil
				continue
			}
			l.now = until
		}
		if died := l.downs[1] > 0; died != (away > span) && (away < span-span/8 || away > span+span/8) {
			t.Fatalf("away for %v of %v: down %d times", away, span, l.downs[1])
		}
		if l.downs[1] > 0 {
			return
		}
		l.wire = nil
		l.ends[0] = ResumeMachine(cfg, left, 99, l.now)
		l.run(30 * time.Second)
		if l.downs != [2]int{} || l.states() != [2]State{Up, Up} {
			t.Fatalf("after the return: %v, downs %v", l.states(), l.downs)
		}
		if want := l.ends[0].DetectionTime(); want == 0 || l.ends[1].DetectionTime() >= span && span > 10*300*time.Millisecond {
			t.Fatalf("detection times %v and %v: the old intervals do not count again", want, l.ends[1].DetectionTime())
		}
	})
}

func TestAResumedSessionThatNobodyHoldsGoesDown(t *testing.T) {
	m := ResumeMachine(fast, Resume{mine, theirs}, 1, start)
	if m.SessionState != Up || m.Deadline() != start {
		t.Fatalf("%+v", m)
	}
	m, out := m.Step(Tick{}, start)
	if p := sends(out); len(p) != 1 || p[0].State != Up || !p[0].Poll || p[0].YourDiscr != theirs || p[0].MyDiscr != mine || p[0].DesiredMinTx != fast.DesiredMinTx {
		t.Errorf("it says %+v", p)
	}
	m, _ = m.Step(Tick{}, start.Add(resumeWait*SlowInterval))
	if m.SessionState != Down || m.LocalDiag != DiagExpired {
		t.Errorf("%v, %v", m.SessionState, m.LocalDiag)
	}
	other, _ := ResumeMachine(fast, Resume{mine, theirs}, 1, start).Step(Received{from(Down)}, start)
	if other.SessionState != Down {
		t.Errorf("the neighbour has given it up, and it is %v", other.SessionState)
	}
}

func TestASessionRestsWhileItsProcessIsReplaced(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		c := newCable(t)
		a, b := c.driver(0), c.driver(1)
		begin := time.Now()
		a.want(c.session(0, v6, fast))
		b.want(c.session(1, v6, fast))
		a.changed(begin, Up, DiagNone)
		b.changed(begin, Up, DiagNone)
		a.status("the agreed interval", func(s Status) bool { return s.DetectionTime == 150*time.Millisecond })
		up := time.Now()
		if _, err := fmt.Fprintln(b.in, "rest 9s"); err != nil {
			t.Fatal(err)
		}
		left := b.await("how to go on", func(r report) bool { return r.State == "resting" }).Resume
		_ = b.in.Close()
		_ = b.cmd.Wait()
		a.status("a long detection time", func(s Status) bool { return s.DetectionTime == 9*time.Second })
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		<-timer.C
		again := c.session(1, v6, fast)
		again.Resume = left
		next := c.driver(1)
		next.want(again)
		a.status("the short one again", func(s Status) bool { return s.DetectionTime == 150*time.Millisecond })
		next.status("the session", func(s Status) bool { return s.State == Up && s.WasUp && s.DetectionTime == 150*time.Millisecond })
		if a.downs(up)+next.downs(up) > 0 {
			t.Error("the session went down")
		}
	})
}

func lone(n byte) Key {
	return Key{Local: netip.AddrFrom4([4]byte{192, 0, 2, 100}), Remote: netip.AddrFrom4([4]byte{192, 0, 2, n}), Interface: "lo"}
}

func TestWhoIsNotUpDoesNotRest(t *testing.T) {
	d := NewDriver(Options{Port: 47841})
	if err := d.SetSessions([]Session{{Key: lone(1), Config: fast}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if got, err := d.Rest(ctx, []Key{lone(1), lone(2)}, time.Second); len(got) > 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", got, err)
	}
}
