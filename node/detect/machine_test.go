package detect

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	mine   = 0x1111
	theirs = 0x2222
)

var fast = Config{DesiredMinTx: 50 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond, DetectMult: 3}

// from is what a neighbour in this state says.
func from(s State) Packet {
	p := Packet{State: s, DetectMult: 3, MyDiscr: theirs, YourDiscr: mine, DesiredMinTx: 50 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond}
	if s == Down {
		p.YourDiscr = 0
	}
	return p
}

// in brings a machine into a state by the shortest way.
func in(t *testing.T, s State) Machine {
	t.Helper()
	m := NewMachine(fast, mine, 1, start)
	m, _ = m.Step(Tick{}, start)
	switch s {
	case AdminDown:
		m, _ = m.Step(Admin{Down: true}, start)
	case Init:
		m, _ = m.Step(Received{from(Down)}, start)
	case Up:
		m, _ = m.Step(Received{from(Init)}, start)
		final := from(Up)
		final.Final = true
		m, _ = m.Step(Received{final}, start)
	}
	if m.SessionState != s {
		t.Fatalf("in state %v, want %v", m.SessionState, s)
	}
	return m
}

func sends(actions []Action) []Packet {
	var out []Packet
	for _, a := range actions {
		if s, ok := a.(Send); ok {
			out = append(out, s.Packet)
		}
	}
	return out
}

// The state machine of RFC 5880, 6.2 and 6.8.6: own state, what the neighbour says, what follows.
func TestStatesFollowTheRFC(t *testing.T) {
	for _, row := range []struct {
		own, heard, then State
		diag             Diag
	}{
		{Down, AdminDown, Down, DiagNone},
		{Down, Down, Init, DiagNone},
		{Down, Init, Up, DiagNone},
		{Down, Up, Down, DiagNone},
		{Init, AdminDown, Down, DiagNeighbourDown},
		{Init, Down, Init, DiagNone},
		{Init, Init, Up, DiagNone},
		{Init, Up, Up, DiagNone},
		{Up, AdminDown, Down, DiagNeighbourDown},
		{Up, Down, Down, DiagNeighbourDown},
		{Up, Init, Up, DiagNone},
		{Up, Up, Up, DiagNone},
		{AdminDown, AdminDown, AdminDown, DiagAdminDown},
		{AdminDown, Down, AdminDown, DiagAdminDown},
		{AdminDown, Init, AdminDown, DiagAdminDown},
		{AdminDown, Up, AdminDown, DiagAdminDown},
	} {
		t.Run(fmt.Sprintf("%v hears %v", row.own, row.heard), func(t *testing.T) {
			m := in(t, row.own)
			p := from(row.heard)
			p.YourDiscr = mine
			m, out := m.Step(Received{p}, start.Add(time.Millisecond))
			if m.SessionState != row.then || m.LocalDiag != row.diag {
				t.Fatalf("became %v (%v), want %v (%v)", m.SessionState, m.LocalDiag, row.then, row.diag)
			}
			if changed := row.own != row.then; changed && (len(sends(out)) == 0 || sends(out)[0].State != row.then) {
				t.Fatalf("the neighbour is not told of the change at once: %+v", out)
			}
		})
	}
}

func TestSessionGoesDownWhenTheDetectionTimePasses(t *testing.T) {
	for _, s := range []State{Init, Up} {
		m := in(t, s)
		at := start.Add(m.DetectionTime())
		for m.Deadline().Before(at) {
			var out []Action
			m, out = m.Step(Tick{}, m.Deadline())
			if m.SessionState != s {
				t.Fatalf("%v: left early: %+v", s, out)
			}
		}
		m, _ = m.Step(Tick{}, at)
		if m.SessionState != Down || m.LocalDiag != DiagExpired || m.RemoteDiscr != 0 {
			t.Fatalf("%v: became %v (%v), remote discriminator %d", s, m.SessionState, m.LocalDiag, m.RemoteDiscr)
		}
		if m.TransmitInterval() < SlowInterval {
			t.Fatalf("%v: sends every %v when down", s, m.TransmitInterval())
		}
	}
}

// RFC 5880, 6.8.4: the neighbour's multiplier, and the greater of its wish and our ability.
func TestDetectionTimeIsTheNeighboursMultipleOfTheAgreedInterval(t *testing.T) {
	m := in(t, Up)
	p := from(Up)
	p.DetectMult, p.DesiredMinTx = 5, 80*time.Millisecond
	m, _ = m.Step(Received{p}, start)
	if m.DetectionTime() != 400*time.Millisecond {
		t.Fatalf("detection time %v", m.DetectionTime())
	}
	p.DesiredMinTx = 10 * time.Millisecond // less than we can take
	m, _ = m.Step(Received{p}, start)
	if m.DetectionTime() != 250*time.Millisecond {
		t.Fatalf("detection time %v", m.DetectionTime())
	}
}

// RFC 5880, 6.8.7.
func TestPacketsAreJitteredWithinTheRFCsBounds(t *testing.T) {
	for _, mult := range []uint8{1, 3} {
		cfg := fast
		cfg.DetectMult = mult
		least, most := 750, 1000
		if mult == 1 {
			most = 900
		}
		m := NewMachine(cfg, mine, 42, start)
		seen := map[time.Duration]bool{}
		for range 1000 {
			at := m.Deadline()
			m, _ = m.Step(Tick{}, at)
			gap := m.Deadline().Sub(at)
			if gap < SlowInterval*time.Duration(least)/1000 || gap > SlowInterval*time.Duration(most)/1000 {
				t.Fatalf("multiplier %d: %v between packets", mult, gap)
			}
			seen[gap] = true
		}
		if len(seen) < 100 {
			t.Fatalf("multiplier %d: only %d different gaps", mult, len(seen))
		}
	}
}

func TestPollIsAnsweredAtOnceWithFinal(t *testing.T) {
	for _, s := range []State{Down, Init, Up} {
		p := from(s)
		p.Poll, p.YourDiscr = true, mine
		_, out := in(t, s).Step(Received{p}, start)
		got := sends(out)
		if len(got) == 0 || !got[len(got)-1].Final || got[len(got)-1].Poll {
			t.Fatalf("%v: %+v", s, out)
		}
	}
}

// RFC 5880, 6.8.3 and 6.5: when the session comes up the fast interval is announced by a poll.
func TestComingUpPollsUntilFinal(t *testing.T) {
	m := in(t, Init)
	m, out := m.Step(Received{from(Up)}, start)
	if p := sends(out)[0]; !p.Poll || p.DesiredMinTx != fast.DesiredMinTx {
		t.Fatalf("first packet when up: %+v", p)
	}
	m, out = m.Step(Tick{}, m.Deadline())
	if !sends(out)[0].Poll {
		t.Fatal("the poll ended without an answer")
	}
	final := from(Up)
	final.Final = true
	m, _ = m.Step(Received{final}, start)
	_, out = m.Step(Tick{}, m.Deadline())
	if sends(out)[0].Poll {
		t.Fatal("the poll goes on after its answer")
	}
}

// RFC 5880, 6.8.3: what would make the neighbour miss packets waits for its word.
func TestSlowerSendingWaitsForTheNeighbour(t *testing.T) {
	m := in(t, Up)
	slow := fast
	slow.DesiredMinTx = 300 * time.Millisecond
	m, _ = m.Step(Configure{slow}, start)
	if m.TransmitInterval() != 50*time.Millisecond {
		t.Fatalf("sends every %v before the neighbour knows", m.TransmitInterval())
	}
	final := from(Up)
	final.Final = true
	m, _ = m.Step(Received{final}, start)
	if m.TransmitInterval() != 300*time.Millisecond {
		t.Fatalf("sends every %v after the neighbour knows", m.TransmitInterval())
	}
}

func TestShorterDetectionWaitsForTheNeighbour(t *testing.T) {
	m := in(t, Up)
	p := from(Up)
	p.DesiredMinTx = 10 * time.Millisecond
	m, _ = m.Step(Received{p}, start)
	quick := fast
	quick.RequiredMinRx = 10 * time.Millisecond
	m, _ = m.Step(Configure{quick}, start)
	if m.DetectionTime() != 150*time.Millisecond {
		t.Fatalf("detection time %v before the neighbour knows", m.DetectionTime())
	}
	p.Final = true
	m, _ = m.Step(Received{p}, start)
	if m.DetectionTime() != 30*time.Millisecond {
		t.Fatalf("detection time %v after the neighbour knows", m.DetectionTime())
	}
}

func TestNothingIsSentToWhoWantsNothing(t *testing.T) {
	m := in(t, Up)
	p := from(Up)
	p.RequiredMinRx = 0
	m, _ = m.Step(Received{p}, start)
	if at := m.Deadline(); at != start.Add(m.DetectionTime()) {
		t.Fatalf("something but the detection time is due at +%v", at.Sub(start))
	}
	p.RequiredMinRx = 50 * time.Millisecond
	m, _ = m.Step(Received{p}, start)
	if m.Deadline() != start {
		t.Fatal("sending does not begin again")
	}
}

func TestDemandModeOfTheNeighbourIsHonoured(t *testing.T) {
	m := in(t, Up)
	p := from(Up)
	p.Demand = true
	m, _ = m.Step(Received{p}, start)
	if at := m.Deadline(); at != start.Add(m.DetectionTime()) {
		t.Fatalf("something but the detection time is due at +%v", at.Sub(start))
	}
}

func TestPassiveSessionWaitsForTheNeighbour(t *testing.T) {
	cfg := fast
	cfg.Passive = true
	m := NewMachine(cfg, mine, 1, start)
	if !m.Deadline().IsZero() {
		t.Fatal("a passive session speaks first")
	}
	_, out := m.Step(Received{from(Down)}, start)
	if len(sends(out)) != 1 {
		t.Fatalf("a passive session does not answer: %+v", out)
	}
}

func TestPacketsOfAnotherSessionChangeNothing(t *testing.T) {
	for name, p := range map[string]Packet{
		"another discriminator": {State: Down, DetectMult: 3, MyDiscr: theirs, YourDiscr: 5},
		"authenticated":         {State: Down, DetectMult: 3, MyDiscr: theirs, YourDiscr: mine, Authenticated: true},
	} {
		before := in(t, Up)
		if after, out := before.Step(Received{p}, start); after != before || out != nil {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

func TestPathFailureEndsTheSessionAtOnce(t *testing.T) {
	m, out := in(t, Up).Step(PathFailed{DiagEchoFailed}, start)
	if m.SessionState != Down || m.LocalDiag != DiagEchoFailed || len(sends(out)) != 1 {
		t.Fatalf("%v (%v), %+v", m.SessionState, m.LocalDiag, out)
	}
}

// RFC 5880, 6.5: a poll is answered at once, so it tells whether the neighbour is there.
func TestAskingPollsOnceAndChangesNoTimer(t *testing.T) {
	for _, s := range []State{AdminDown, Down, Init} {
		before := in(t, s)
		if after, out := before.Step(Ask{}, start); after != before || out != nil {
			t.Fatalf("%v: %+v", s, out)
		}
	}
	m := in(t, Up)
	tx, detection := m.TransmitInterval(), m.DetectionTime()
	m, out := m.Step(Ask{}, start)
	if p := sends(out); len(p) != 1 || !p[0].Poll || p[0].State != Up {
		t.Fatalf("asked by %+v", out)
	}
	if _, out = m.Step(Ask{}, start); out != nil {
		t.Fatalf("asked twice: %+v", out)
	}
	final := from(Up)
	final.Final = true
	m, _ = m.Step(Received{final}, start)
	_, out = m.Step(Tick{}, m.Deadline())
	if sends(out)[0].Poll || m.TransmitInterval() != tx || m.DetectionTime() != detection {
		t.Fatalf("after the answer: %+v, every %v, detection %v", out, m.TransmitInterval(), m.DetectionTime())
	}
}

func TestAdminDownIsToldAndTakenBack(t *testing.T) {
	m, out := in(t, Up).Step(Admin{Down: true}, start)
	if p := sends(out)[0]; p.State != AdminDown || p.Diag != DiagAdminDown {
		t.Fatalf("told: %+v", p)
	}
	m, _ = m.Step(Admin{Down: false}, start)
	m, _ = m.Step(Received{from(Init)}, start)
	if m.SessionState != Up {
		t.Fatalf("does not come up again: %v", m.SessionState)
	}
}

// link is two sessions and the wire between them.
type link struct {
	now   time.Time
	ends  [2]Machine
	cut   [2]bool // what this end sends is lost
	loss  func() bool
	delay time.Duration
	wire  []flying
	downs [2]int
}

type flying struct {
	to int
	at time.Time
	p  Packet
}

func newLink(a, b Config, delay time.Duration) *link {
	l := &link{now: start, delay: delay, loss: func() bool { return false }}
	l.ends = [2]Machine{NewMachine(a, 1, 11, start), NewMachine(b, 2, 22, start.Add(37*time.Millisecond))}
	return l
}

// run lets time pass, from one thing that is due to the next.
func (l *link) run(d time.Duration) {
	for end := l.now.Add(d); ; {
		next, who := end, -1
		for i, m := range l.ends {
			if at := m.Deadline(); !at.IsZero() && at.Before(next) {
				next, who = at, i
			}
		}
		if len(l.wire) > 0 && !l.wire[0].at.After(next) {
			f := l.wire[0]
			l.wire, l.now = l.wire[1:], f.at
			l.do(f.to, Received{f.p})
			continue
		}
		if who < 0 {
			l.now = end
			return
		}
		if next.After(l.now) {
			l.now = next
		}
		l.do(who, Tick{})
	}
}

func (l *link) do(who int, ev Event) {
	m, out := l.ends[who].Step(ev, l.now)
	l.ends[who] = m
	for _, a := range out {
		switch a := a.(type) {
		case Send:
			if !l.cut[who] && !l.loss() {
				l.wire = append(l.wire, flying{1 - who, l.now.Add(l.delay), a.Packet})
			}
		case Change:
			if a.From == Up {
				l.downs[who]++
			}
		}
	}
}

func (l *link) states() [2]State {
	return [2]State{l.ends[0].SessionState, l.ends[1].SessionState}
}

func TestTwoSessionsComeUpStayUpAndFindACut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := rapid.Custom(func(t *rapid.T) Config {
			ms := rapid.IntRange(10, 400)
			return Config{
				DesiredMinTx:  time.Duration(ms.Draw(t, "tx")) * time.Millisecond,
				RequiredMinRx: time.Duration(ms.Draw(t, "rx")) * time.Millisecond,
				DetectMult:    uint8(rapid.IntRange(2, 10).Draw(t, "mult")),
			}
		})
		l := newLink(cfg.Draw(t, "a"), cfg.Draw(t, "b"), time.Duration(rapid.IntRange(0, 5000).Draw(t, "delay"))*time.Microsecond)
		l.run(5 * time.Second)
		if l.states() != [2]State{Up, Up} {
			t.Fatalf("after 5 s: %v", l.states())
		}
		l.run(time.Minute)
		if l.downs != [2]int{} {
			t.Fatalf("went down without a cause: %v", l.downs)
		}
		which := rapid.IntRange(0, 1).Draw(t, "cut") // one way only
		l.cut[which] = true
		other := 1 - which
		limit := l.ends[other].DetectionTime() + l.delay
		l.run(limit)
		if l.ends[other].SessionState == Up || l.ends[other].LocalDiag != DiagExpired {
			t.Fatalf("the deaf end is %v (%v) after %v", l.ends[other].SessionState, l.ends[other].LocalDiag, limit)
		}
		l.run(l.delay)
		if s := l.ends[which]; s.SessionState == Up || s.LocalDiag != DiagNeighbourDown {
			t.Fatalf("the other end is %v (%v): it hears that it is not heard", s.SessionState, s.LocalDiag)
		}
		l.cut[which] = false
		l.run(5 * time.Second)
		if l.states() != [2]State{Up, Up} {
			t.Fatalf("5 s after the cut was mended: %v", l.states())
		}
	})
}

func TestChangedTimersNeverCostASession(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLink(fast, fast, time.Millisecond)
		l.run(5 * time.Second)
		for range rapid.IntRange(1, 10).Draw(t, "changes") {
			ms := rapid.IntRange(10, 500)
			cfg := Config{
				DesiredMinTx:  time.Duration(ms.Draw(t, "tx")) * time.Millisecond,
				RequiredMinRx: time.Duration(ms.Draw(t, "rx")) * time.Millisecond,
				DetectMult:    uint8(rapid.IntRange(2, 5).Draw(t, "mult")),
			}
			l.do(rapid.IntRange(0, 1).Draw(t, "end"), Configure{cfg})
			if rapid.Bool().Draw(t, "ask") {
				l.do(rapid.IntRange(0, 1).Draw(t, "asking"), Ask{})
			}
			l.run(time.Duration(rapid.IntRange(0, 2000).Draw(t, "wait")) * time.Millisecond)
		}
		l.run(5 * time.Second)
		if l.downs != [2]int{} || l.states() != [2]State{Up, Up} {
			t.Fatalf("states %v, downs %v", l.states(), l.downs)
		}
		for i, m := range l.ends {
			if m.polling {
				t.Fatalf("end %d still polls", i)
			}
		}
	})
}
