package announce

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestFirstBurstGoesOutBeforeAnnounceReturns(t *testing.T) {
	w := newFakeWire()
	l, err := newL2(L2Config{}, w) // Run is not even running
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1), advert("10.0.1.1", "eth1", 1)}); err != nil {
		t.Fatal(err)
	}
	frames := w.take()
	if len(frames) != 4 {
		t.Fatalf("%d frames, want both forms of two", len(frames))
	}
	if f := frames[2]; f.link != "eth1" || f.claim.hw != w.links["eth1"].hw {
		t.Errorf("got %+v", f)
	}
	if s := l.Stats(); s != (L2Stats{Sent: 4}) {
		t.Errorf("stats %+v", s)
	}
}

func TestRunRepeatsOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		want := []Advert{advert("10.0.0.1", "eth0", 1)}
		if err := l.Announce(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		for range 66 { // the caller asserts its set every second
			after(time.Second)
			if err := l.Announce(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, times(w.take(), "10.0.0.1"), 0, 100*ms, 500*ms, time.Second, 5*time.Second, 65*time.Second)
		if err := l.Announce(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Minute)
		expect(t, times(w.take(), "10.0.0.1"))
	})
}

func TestNewEpochAndAgainAnnounceAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1)})
		after(10 * time.Second)
		w.take()
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 2)})
		after(300 * ms)
		expect(t, times(w.take(), "10.0.0.1"), 10*time.Second, 10100*ms)
		l.Again("test")
		after(300 * ms)
		expect(t, times(w.take(), "10.0.0.1"), 10300*ms, 10400*ms)
	})
}

func TestBothFamiliesShareTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1), advert("2001:db8::1", "eth0", 1)})
		after(10 * time.Second)
		frames := w.take()
		for _, addr := range []string{"10.0.0.1", "2001:db8::1"} {
			expect(t, times(frames, addr), 0, 100*ms, 500*ms, time.Second, 5*time.Second)
		}
		if s := l.Stats(); s.Sent != 15 {
			t.Errorf("%d frames, want five times two and five times one", s.Sent)
		}
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1), advert("2001:db8::1", "eth0", 2)})
		after(300 * ms)
		frames = w.take()
		expect(t, times(frames, "10.0.0.1"))
		expect(t, times(frames, "2001:db8::1"), 10*time.Second, 10100*ms)
		w.port("eth0", ndp).close() // one protocol's socket fails: the other's goes on
		after(1200 * ms)
		frames = w.take()
		expect(t, times(frames, "10.0.0.1"))
		if len(times(frames, "2001:db8::1")) < 3 {
			t.Errorf("not announced anew with a new socket: %+v", frames)
		}
	})
}

func TestForeignClaimOfIPv6IsAnsweredAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		vip := advert("2001:db8::1", "eth0", 1)
		_ = l.Announce(t.Context(), []Advert{vip})
		after(20 * time.Second)
		w.take()
		in, other := w.port("eth0", ndp).in, mac{2, 9, 9, 9, 9, 9}
		in <- appendAdvertisement(nil, other, vip.Addr, false)
		in <- solicitation(other, vip.Addr, vip.Addr)
		in <- appendAdvertisement(nil, testMAC, vip.Addr, false)                         // our own, reflected
		in <- appendAdvertisement(nil, other, advert("2001:db8::77", "", 0).Addr, false) // another address
		in <- solicitation(other, advert("2001:db8::77", "", 0).Addr, vip.Addr)          // somebody asks for ours
		in <- solicitation(other, advert("::", "", 0).Addr, vip.Addr)                    // somebody would like to have it
		in <- []byte("nonsense")
		after(200 * ms)
		expect(t, times(w.take(), "2001:db8::1"), 20*time.Second, 20100*ms)
		if s := l.Stats(); s.ForeignClaims != 2 || s.Malformed != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestShutFenceSilencesIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		l, w := running(t, L2Config{Fence: func(Advert) bool { return open.Load() }})
		vip := advert("2001:db8::1", "eth0", 1)
		_ = l.Announce(t.Context(), []Advert{vip})
		after(time.Second)
		if frames := w.take(); len(frames) > 0 || l.Stats().Fenced == 0 {
			t.Errorf("said %+v, stats %+v", frames, l.Stats())
		}
		open.Store(true)
		after(250 * ms)
		if got := times(w.take(), "2001:db8::1"); len(got) != 2 {
			t.Errorf("announced at %v after the fence opened", got)
		}
	})
}

func TestForeignClaimIsAnsweredAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1)})
		after(20 * time.Second)
		w.take()
		claim := gratuitous(mac{2, 9, 9, 9, 9, 9}, advert("10.0.0.1", "", 0).Addr)
		for _, f := range claim {
			w.port("eth0", arp).in <- f.append(nil)
		}
		ours := gratuitous(testMAC, advert("10.0.0.1", "", 0).Addr)[0] // our own, reflected
		w.port("eth0", arp).in <- ours.append(nil)
		other := gratuitous(mac{2, 9, 9, 9, 9, 9}, advert("10.0.0.77", "", 0).Addr)[0]
		w.port("eth0", arp).in <- other.append(nil)
		probe := claim[0]
		probe.senderIP = advert("0.0.0.0", "", 0).Addr
		w.port("eth0", arp).in <- probe.append(nil)
		w.port("eth0", arp).in <- []byte("nonsense")
		after(200 * ms)
		expect(t, times(w.take(), "10.0.0.1"), 20*time.Second, 20100*ms)
		if s := l.Stats(); s.ForeignClaims != 2 || s.Malformed != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestShutFenceSilencesAndOpensWithTheWholeSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		l, w := running(t, L2Config{Fence: func(a Advert) bool { return open.Load() || a.Epoch == 7 }})
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1), advert("10.0.0.2", "eth0", 7)})
		l.Again("a claim must not pass the fence either")
		after(2 * time.Second)
		frames := w.take()
		expect(t, times(frames, "10.0.0.1"))
		if len(times(frames, "10.0.0.2")) < 4 {
			t.Error("the other address is silent too")
		}
		if l.Stats().Fenced == 0 {
			t.Error("not counted")
		}
		open.Store(true)
		after(350 * ms)
		if got := times(w.take(), "10.0.0.1"); len(got) != 2 || got[0] > 2100*ms || got[1]-got[0] != 100*ms {
			t.Errorf("announced at %v after the fence opened", got)
		}
	})
}

func TestLinkThatComesBackIsAnnouncedAnew(t *testing.T) {
	for name, back := range map[string]linkState{
		"same":          {index: 2, hw: testMAC},
		"another index": {index: 9, hw: testMAC},
		"another MAC":   {index: 2, hw: mac{2, 7, 7, 7, 7, 7}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, w := running(t, L2Config{})
				_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1)})
				after(10 * time.Second)
				w.take()
				w.set("eth0", linkState{})
				after(5 * time.Second)
				expect(t, times(w.take(), "10.0.0.1"))
				w.set("eth0", back)
				after(1200 * ms)
				frames := w.take()
				if len(frames) < 4 || frames[0].claim.hw != back.hw || frames[0].after > 16*time.Second {
					t.Errorf("got %+v", frames)
				}
			})
		})
	}
}

func TestChangedMACIsNoticedWithoutTheLinkGoingDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1)})
		after(10 * time.Second)
		w.take()
		w.set("eth0", linkState{index: 2, hw: mac{2, 7, 7, 7, 7, 7}})
		after(1100 * ms)
		if frames := w.take(); len(frames) < 2 || frames[0].claim.hw != (mac{2, 7, 7, 7, 7, 7}) {
			t.Errorf("got %+v", frames)
		}
	})
}

func TestFailedSendIsReportedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		w.setFail(unix.ENOBUFS)
		want := []Advert{advert("10.0.0.1", "eth0", 1), advert("10.0.0.2", "eth0", 1), advert("10.0.0.3", "eth7", 1)}
		err := l.Announce(t.Context(), want)
		if !errors.Is(err, unix.ENOBUFS) || !errors.Is(err, errLinkDown) || !strings.Contains(err.Error(), "announce 10.0.0.2") {
			t.Errorf("got %v", err)
		}
		w.setFail(nil)
		after(700 * ms)
		expect(t, times(w.take(), "10.0.0.2"), 500*ms, 600*ms)
		if l.Stats().SendErrors < 3 {
			t.Errorf("stats %+v", l.Stats())
		}
	})
}

func TestWhatIsNoHostsAddressIsRefusedAndTheRestGoesOut(t *testing.T) {
	w := newFakeWire()
	l, err := newL2(L2Config{}, w)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, bad := range []string{"ff02::1", "224.0.0.1", "::", "0.0.0.0", "::1", "127.0.0.1"} {
		if err = l.Announce(t.Context(), []Advert{advert(bad, "eth0", 1)}); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	err = l.Announce(t.Context(), []Advert{{Link: "eth0"}, advert("::ffff:10.0.0.1", "eth0", 1), advert("fe80::7%eth9", "eth0", 1)})
	if !errors.Is(err, ErrAddress) {
		t.Errorf("got %v", err)
	}
	frames := w.take()
	if len(times(frames, "10.0.0.1")) != 1 || len(times(frames, "fe80::7")) != 1 || len(frames) != 3 {
		t.Errorf("got %+v", frames)
	}
}

func TestClosedSpeakerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, w := running(t, L2Config{})
		_ = l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 1)})
		w.take()
		for range 2 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Announce(t.Context(), []Advert{advert("10.0.0.1", "eth0", 2)}); !errors.Is(err, ErrClosed) {
			t.Errorf("announce: %v", err)
		}
		if err := l.Run(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("run: %v", err)
		}
		after(10 * time.Second)
		expect(t, times(w.take(), "10.0.0.1"))
	})
}

func TestEndedContextSendsNothing(t *testing.T) {
	w := newFakeWire()
	l, _ := newL2(L2Config{}, w)
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Announce(ctx, []Advert{advert("10.0.0.1", "eth0", 1)}); !errors.Is(err, context.Canceled) || len(w.take()) > 0 {
		t.Errorf("got %v", err)
	}
}

func TestConfigErrorsAreReportedTogether(t *testing.T) {
	_, err := NewL2(L2Config{Schedule: []time.Duration{-1, 5, 5}, Every: -time.Second})
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("got %v", err)
	}
}
