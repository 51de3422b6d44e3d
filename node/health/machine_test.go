package health

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var usual = rules{rise: 2, fall: 3, interval: 2 * time.Second}

// feed lets a machine step through results, one interval apart; 1 is a pass.
func feed(m machine, r rules, from time.Duration, results string) (machine, time.Duration) {
	for _, c := range results {
		from += r.interval
		m, _ = m.step(r, c == '1', from)
	}
	return m, from
}

func TestVerdictsNeedResultsInARow(t *testing.T) {
	for _, tc := range []struct {
		name    string
		start   Health
		results string
		want    Health
	}{
		{"one pass is enough when nothing is known", Unknown, "1", Up},
		{"failures must be in a row even then", Unknown, "00", Unknown},
		{"an unknown endpoint goes down after fall failures", Unknown, "000", Down},
		{"two failures keep it up", Up, "00", Up},
		{"three take it down", Up, "000", Down},
		{"a pass between begins anew", Up, "00100", Up},
		{"one pass does not bring it back", Down, "1", Down},
		{"two do", Down, "11", Up},
		{"a failure between begins anew", Down, "101", Down},
		{"long dead stays dead", Down, "0000000000", Down},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if m, _ := feed(machine{health: tc.start}, usual, 0, tc.results); m.health != tc.want {
				t.Errorf("%s from %s is %s, want %s", tc.results, tc.start, m.health, tc.want)
			}
		})
	}
}

func TestFlappingEndpointNeedsMoreToComeBack(t *testing.T) {
	r := rules{rise: 2, fall: 3, interval: 100 * time.Millisecond}
	m := machine{health: Up}
	now := time.Duration(0)
	for range 3 {
		m, now = feed(m, r, now, "00011")
	}
	if !m.flapping {
		t.Fatalf("three falls within seconds are no flapping: %+v", m)
	}
	if m.health != Down {
		t.Fatalf("after the third fall two passes brought it back: needed is %d", m.needed(r))
	}
	needed := m.needed(r)
	if needed <= r.rise {
		t.Fatalf("needs %d passes, want more than %d", needed, r.rise)
	}
	m, now = feed(m, r, now, "1111111111")
	if m.health != Up {
		t.Fatalf("not up after %d passes", needed)
	}
	for range 2000 { // 200 s
		m, now = feed(m, r, now, "1")
	}
	if m.flapping {
		t.Errorf("still flapping after 200 s in which every probe passed, %v points", m.points)
	}
	if m.needed(r) != r.rise {
		t.Errorf("needs %d passes when it is calm, want %d", m.needed(r), r.rise)
	}
}

// What is promised of every sequence of results.
func TestMachineKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rules{
			rise:     rapid.IntRange(1, 100).Draw(t, "rise"),
			fall:     rapid.IntRange(1, 100).Draw(t, "fall"),
			interval: time.Duration(rapid.IntRange(int(MinInterval), int(10*time.Minute)).Draw(t, "interval")),
		}
		m := machine{health: Health(rapid.IntRange(0, 2).Draw(t, "start"))}
		passes, failures, falls := 0, 0, 0
		now := time.Duration(0)
		p := rapid.IntRange(0, 100).Draw(t, "chance of a pass")
		for range rapid.IntRange(1, 600).Draw(t, "probes") {
			passed := rapid.IntRange(0, 99).Draw(t, "result") < p
			if passed {
				passes, failures = passes+1, 0
			} else {
				passes, failures = 0, failures+1
			}
			now += time.Duration(rapid.IntRange(0, int(2*r.interval)).Draw(t, "gap"))
			before := m
			var changed bool
			m, changed = m.step(r, passed, now)
			if changed != (m.health != before.health || m.flapping != before.flapping) {
				t.Fatalf("changed is %t from %+v to %+v", changed, before, m)
			}
			if need := m.needed(r); need < r.rise || need > 16*r.rise || need > r.rise && time.Duration(need)*r.interval > longestHold {
				t.Fatalf("needs %d passes by %+v", need, r)
			}
			if m.points < 0 || m.points > maxPoints {
				t.Fatalf("%v points", m.points)
			}
			if before.health == Up && m.health == Down {
				falls++
			}
			if m.flapping && falls < 3 {
				t.Fatalf("flapping after %d falls", falls)
			}
			switch {
			case m.health == before.health:
				if m.health == Up && failures >= r.fall {
					t.Fatalf("up after %d failures in a row", failures)
				}
				if m.health == Down && passes > 16*r.rise {
					t.Fatalf("down after %d passes in a row", passes)
				}
			case m.health == Unknown:
				t.Fatal("forgot what it knew")
			case m.health == Down && failures != r.fall && before.health != Unknown:
				t.Fatalf("went down after %d failures in a row, want %d", failures, r.fall)
			case m.health == Up && before.health == Down && passes < r.rise:
				t.Fatalf("came up after %d passes in a row, want %d", passes, r.rise)
			}
		}
	})
}

func TestLatencyQuantilesAreOfTheLast64(t *testing.T) {
	var l latencies
	if p50, p99, last := l.quantiles(); p50+p99+last != 0 {
		t.Error("quantiles of nothing")
	}
	l.add(time.Hour) // to be pushed out
	for i := range 64 {
		l.add(time.Duration(i+1) * time.Millisecond)
	}
	p50, p99, last := l.quantiles()
	if p50 != 32*time.Millisecond || p99 != 64*time.Millisecond || last != 64*time.Millisecond {
		t.Errorf("quantiles %v %v, last %v", p50, p99, last)
	}
}
