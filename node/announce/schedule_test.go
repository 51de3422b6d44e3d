package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epochStart = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return epochStart.Add(d) }

func advert(addr, link string, epoch uint64) Advert {
	return Advert{Addr: netip.MustParseAddr(addr), Link: link, Epoch: epoch}
}

const ms = time.Millisecond

func testSchedule() *schedule {
	return newSchedule([]time.Duration{0, 100 * ms, 500 * ms, time.Second, 5 * time.Second}, 60*time.Second)
}

// play runs s as the driver does, each announcement exactly when it is due, from
// time from until until, and returns when announcements were made.
func play(s *schedule, from, until time.Duration) []time.Duration {
	var out []time.Duration
	now := at(from)
	for {
		for range s.step(now) {
			out = append(out, now.Sub(epochStart))
		}
		wake, ok := s.wake()
		if !ok || wake.After(at(until)) {
			return out
		}
		now = wake
	}
}

func expect(t *testing.T, got []time.Duration, want ...time.Duration) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("announced at %v, want %v", got, want)
	}
}

func TestScheduleBurstsThenRepeats(t *testing.T) {
	s := testSchedule()
	s.want([]Advert{advert("10.0.0.1", "eth0", 1)}, at(0))
	expect(t, play(s, 0, 126*time.Second), 0, 100*ms, 500*ms, time.Second, 5*time.Second, 65*time.Second, 125*time.Second)
}

func TestScheduleStartsAgainOnlyForWhatIsNew(t *testing.T) {
	one, two := advert("10.0.0.1", "eth0", 1), advert("10.0.0.2", "eth0", 1)
	newer, moved := advert("10.0.0.1", "eth0", 2), advert("10.0.0.1", "eth1", 1)
	for _, tc := range []struct {
		name string
		then []Advert
		due  []Advert
	}{
		{"same", []Advert{one}, nil},
		{"same twice", []Advert{one, one}, nil},
		{"another", []Advert{one, two}, []Advert{two}},
		{"new epoch", []Advert{newer}, []Advert{newer}},
		{"two epochs, the higher counts", []Advert{newer, one}, []Advert{newer}},
		{"moved", []Advert{moved}, []Advert{moved}},
		{"gone", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := testSchedule()
			s.want([]Advert{one}, at(0))
			s.step(at(0))
			s.want(tc.then, at(50*ms))
			if got := s.step(at(50 * ms)); !slices.Equal(got, tc.due) {
				t.Errorf("due %v, want %v", got, tc.due)
			}
			if _, ok := s.wake(); ok != (len(tc.then) > 0) {
				t.Errorf("wake: %v", ok)
			}
		})
	}
}

func TestScheduleSkipsWhatItMissed(t *testing.T) {
	s := testSchedule()
	s.want([]Advert{advert("10.0.0.1", "eth0", 1)}, at(0))
	s.step(at(0))
	if n := len(s.step(at(300 * time.Second))); n != 1 {
		t.Errorf("%d announcements at once after a long pause", n)
	}
	expect(t, play(s, 300*time.Second, 306*time.Second), 305*time.Second)
}

func TestHeldBackStartsFromTheBeginning(t *testing.T) {
	s := testSchedule()
	a := advert("10.0.0.1", "eth0", 1)
	s.want([]Advert{a}, at(0))
	s.step(at(0))
	s.step(at(100 * ms))
	s.hold(a, at(600*ms))
	expect(t, play(s, 110*ms, 2*time.Second), 600*ms, 700*ms, 1100*ms, 1600*ms)

	s.want([]Advert{advert("10.0.0.1", "eth0", 2)}, at(3*time.Second))
	s.hold(a, at(9*time.Second)) // about an epoch that has passed
	expect(t, play(s, 3*time.Second, 3200*ms), 3*time.Second, 3100*ms)
}

func TestClaimIsAnsweredButNotOftenerThanTheFloor(t *testing.T) {
	s := testSchedule()
	key := target{netip.MustParseAddr("10.0.0.1"), "eth0"}
	s.want([]Advert{advert("10.0.0.1", "eth0", 1)}, at(0))
	s.step(at(0))
	if wanted, tell := s.claim(key, at(10*ms)); !wanted || tell != 1 {
		t.Errorf("first claim: %v, %d", wanted, tell)
	}
	// Within the floor of the first burst: answered at 1 s.
	expect(t, play(s, 10*ms, 1050*ms), 100*ms, 500*ms, time.Second)
	// A claim after quiet is answered at once.
	play(s, 1100*ms, 20*time.Second)
	s.claim(key, at(20*time.Second))
	expect(t, play(s, 20*time.Second, 20200*ms), 20*time.Second, 20100*ms)
	// A claimant who never stops gets one start a second.
	starts := 0
	for d := 21 * time.Second; d < 31*time.Second; d += 10 * ms {
		s.claim(key, at(d))
		s.step(at(d))
		if s.entries[key].start.Equal(at(d)) {
			starts++
		}
	}
	if starts < 9 || starts > 10 {
		t.Errorf("%d starts in 10 s of claims", starts)
	}
	if wanted, _ := s.claim(target{key.addr, "eth1"}, at(31*time.Second)); wanted {
		t.Error("a claim on another link counts")
	}
}

func TestClaimsAreReportedSeldom(t *testing.T) {
	s := testSchedule()
	key := target{netip.MustParseAddr("10.0.0.1"), "eth0"}
	s.want([]Advert{advert("10.0.0.1", "eth0", 1)}, at(0))
	var told []string
	for d := time.Duration(0); d < 21*time.Second; d += time.Second {
		if _, tell := s.claim(key, at(d)); tell > 0 {
			told = append(told, fmt.Sprintf("%v:%d", d, tell))
		}
	}
	if want := []string{"0s:1", "10s:10", "20s:10"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func TestRestartConcernsOneLinkOrAll(t *testing.T) {
	s := testSchedule()
	s.want([]Advert{advert("10.0.0.1", "eth0", 1), advert("10.0.0.2", "eth1", 1)}, at(0))
	s.step(at(0))
	if n := s.restart(&lane{link: "eth1"}, at(10*ms)); n != 1 {
		t.Errorf("restarted %d", n)
	}
	if got := s.lanes(true, at(10*ms)); !slices.Equal(got, []lane{{link: "eth1"}}) {
		t.Errorf("due on %v", got)
	}
	if n := s.restart(nil, at(20*ms)); n != 2 {
		t.Errorf("restarted %d", n)
	}
	if got := s.lanes(false, at(20*ms)); !slices.Equal(got, []lane{{link: "eth0"}, {link: "eth1"}}) {
		t.Errorf("links %v", got)
	}
}

// Whatever happens, the schedule never runs dry, never lies in the past after a
// step, and never stays silent longer than it may.
func TestScheduleNeverFallsSilent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := testSchedule()
		all := []Advert{advert("10.0.0.1", "eth0", 1), advert("10.0.0.2", "eth0", 1), advert("10.0.0.1", "eth1", 2)}
		s.want(all, at(0))
		now := at(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(90*time.Second)).Draw(t, "pause")))
			a := rapid.SampledFrom(all).Draw(t, "advert")
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				s.claim(target{a.Addr, a.Link}, now)
			case 1:
				s.restart(&lane{link: a.Link}, now)
			case 2:
				a.Epoch = s.entries[target{a.Addr, a.Link}].epoch
				s.hold(a, now.Add(sendRetry))
			case 3:
				s.want(all, now)
			}
			s.step(now)
			wake, ok := s.wake()
			if !ok || !wake.After(now) || wake.Sub(now) > 60*time.Second {
				t.Fatalf("at %v: wake %v, %v", now, wake, ok)
			}
			if again := s.step(now); len(again) > 0 {
				t.Fatalf("at %v: %v twice", now, again)
			}
		}
	})
}
