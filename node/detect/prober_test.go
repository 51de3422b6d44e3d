package detect

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// probe sends what is due and answers it, or not.
func probe(t *testing.T, p *Prober, now time.Time, answered bool) {
	t.Helper()
	n, ok, _ := p.Tick(now)
	if !ok {
		t.Fatalf("nothing is due at +%v", now.Sub(start))
	}
	if answered {
		p.Answer(n, now.Add(time.Millisecond))
	}
}

func upProber(t *testing.T) (Prober, time.Time) {
	t.Helper()
	p := NewProber(EchoConfig{}, start)
	now := start
	for range 3 {
		probe(t, &p, now, true)
		now = now.Add(20 * time.Millisecond)
	}
	if p.State() != Up {
		t.Fatalf("three answers in a row and %v", p.State())
	}
	return p, now
}

func TestAPathRisesOnceUntilItIsUp(t *testing.T) {
	p, now := NewProber(EchoConfig{}, start), start
	for i, want := range []bool{true, true, false, false, false, false, false, false} {
		if i == 0 && p.Rising() {
			t.Error("rising before the first answer")
		}
		probe(t, &p, now, i < 4) // up at the third, down after three missed
		now = now.Add(20 * time.Millisecond)
		if p.Rising() != want {
			t.Errorf("probe %d: rising %v, state %v", i+1, p.Rising(), p.State())
		}
	}
	if p.State() != Down {
		t.Errorf("%v", p.State())
	}
}

func TestThreeMissedEchoesAreAVerdictAndTwoAreNot(t *testing.T) {
	p, now := upProber(t)
	for i := range 4 {
		if p.State() != Up {
			t.Fatalf("down when %d probes were judged", i-1)
		}
		probe(t, &p, now, false)
		now = now.Add(20 * time.Millisecond)
	}
	if p.State() != Down {
		t.Fatal("three probes were missed and the path is up")
	}
}

func TestTheFirstMissIsTheMomentOfDoubt(t *testing.T) {
	p, now := upProber(t)
	probe(t, &p, now, false) // the last one was answered
	if !p.Doubted().IsZero() {
		t.Fatal("doubted before a probe was found missing")
	}
	doubted := now.Add(20 * time.Millisecond)
	for range 3 {
		now = now.Add(20 * time.Millisecond)
		probe(t, &p, now, false)
		if p.Doubted() != doubted {
			t.Fatalf("doubted at %v, want %v", p.Doubted(), doubted)
		}
	}
	if p.State() != Down {
		t.Fatal("three missed and not down")
	}
	p.Answer(p.sequence, now)
	if !p.Doubted().IsZero() {
		t.Fatal("doubted after an answer")
	}
}

func TestOneAnswerBetweenMissesKeepsThePath(t *testing.T) {
	p, now := upProber(t)
	for i := range 300 {
		probe(t, &p, now, i%3 == 2)
		now = now.Add(20 * time.Millisecond)
		if p.State() != Up {
			t.Fatalf("down at probe %d", i)
		}
	}
}

// The prober counts probes, not time: however long it stands still itself, at most the
// one probe that was under way is missed.
func TestAPauseOfTheProberIsNoVerdict(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p, now := upProber(t)
		for range rapid.IntRange(1, 50).Draw(rt, "pauses") {
			now = now.Add(time.Duration(rapid.IntRange(20, 60_000).Draw(rt, "pause")) * time.Millisecond)
			n, _, _ := p.Tick(now)
			if rapid.Bool().Draw(rt, "late") {
				now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(rt, "wake")) * time.Millisecond)
			}
			p.Answer(n, now) // drained before the next tick
			if p.State() != Up {
				rt.Fatal("a pause was taken for a failure")
			}
		}
	})
}

func TestAnswersOutOfTurnShowNothing(t *testing.T) {
	p, now := upProber(t)
	probe(t, &p, now, false)
	if p.Answer(99, now) || p.Answer(1, now) || p.missed != 0 && p.answered > 4 {
		t.Fatal("an answer to no probe, or a second one, was taken")
	}
	if p.answered != 3 {
		t.Fatalf("answered up to %d", p.answered)
	}
}

func TestEchoIsKnownByItsCookieOnly(t *testing.T) {
	cookie := func(d uint32) (uint64, bool) { return 0xfeed, d == 5 }
	b := AppendEcho(nil, 5, 0xfeed, 77)
	if d, n, ok := ParseEcho(b, cookie); !ok || d != 5 || n != 77 {
		t.Fatalf("%d %d %v", d, n, ok)
	}
	for i := range b {
		bad := append([]byte(nil), b...)
		bad[i] ^= 1
		if _, _, ok := ParseEcho(bad, cookie); ok {
			t.Fatalf("taken with byte %d changed", i)
		}
	}
	if _, _, ok := ParseEcho(b[:23], cookie); ok {
		t.Fatal("taken although short")
	}
}
