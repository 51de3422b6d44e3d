package node

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/plan"
)

func TestLeaseBeginsWithTheQuestionThatWasAnswered(t *testing.T) {
	const lease, boot = time.Second, time.Hour
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	var c contact
	look := func(ms, applied int) time.Duration {
		c.clock(at(ms), boot+time.Duration(ms)*time.Millisecond)
		c.fresh(at(ms), time.Time{}, uint64(applied))
		return c.vouchedFor(lease)
	}
	want := func(what string, got time.Duration, ms int) {
		t.Helper()
		if want := boot + time.Duration(ms)*time.Millisecond; got != want && (ms != 0 || got != 0) {
			t.Errorf("%s: until %s, want %s", what, got-boot, want-boot)
		}
	}
	want("nothing heard", look(0, 10), 0)
	c.answer(at(0), 10)
	want("applied", look(40, 10), 1000)
	want("again", look(200, 10), 1000)
	c.answer(at(300), 12)
	want("answered and not applied", look(350, 11), 1000)
	want("applied late", look(500, 12), 1300)
	want("after the end", look(1400, 12), 1300)
	want("a heartbeat is no answer", func() time.Duration { c.fresh(at(1400), at(1400), 12); return c.vouchedFor(lease) }(), 1300)
	want("woken from a long sleep", look(9000, 12), 1300)
	c.answer(at(8990), 12) // asked before it woke
	want("answer to a question from before", look(9010, 12), 1300)
	c.answer(at(9020), 12)
	want("asked again", look(9030, 12), 10020)
	c.unsettle(at(9040))
	want("a link has changed", look(9050, 12), 0)
	c.answer(at(9030), 12)
	want("an answer to a question from before the change", look(9060, 12), 0)
	c.answer(at(9070), 12)
	want("asked after the change", look(9080, 12), 10070)
}

// Go's clock stands still while the machine is suspended, also when it is for so short that contact is not
// lost for it. The lease must not.
func TestLeaseRunsOnWhileTheMachineIsSuspended(t *testing.T) {
	var c contact
	c.clock(t0, time.Hour)
	c.answer(t0, 10)
	c.fresh(t0, time.Time{}, 10)
	now := t0.Add(100 * time.Millisecond)
	c.clock(now, time.Hour+900*time.Millisecond) // 800 ms of them asleep
	if !c.fresh(now, now, 10) {
		t.Fatal("contact is lost by a short sleep")
	}
	if got, want := c.vouchedFor(time.Second), time.Hour+time.Second; got != want {
		t.Errorf("until %s, want %s", got, want)
	}
}

func TestLeasesAreOfAllVIPsAndHeldIsWhatTheHostHolds(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	p := plan.Plan{
		Managed: []netip.Addr{a, b, c},
		Addresses: []plan.Address{
			{Addr: a, Link: "eth1", Epoch: 7, Bound: true}, {Addr: b, Link: "eth1", Epoch: 8},
		},
		Adverts: []plan.Advert{{Addr: a, Epoch: 7}, {Addr: b, Epoch: 8}},
	}
	want := map[netip.Addr]bpf.Lease{a: {Epoch: 7, Held: true, Bound: true}, b: {Epoch: 8, Held: true}, c: {Bound: true}}
	if got := leasesOf(p); !maps.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	dropBound(&p)
	if len(p.Addresses) != 1 || p.Addresses[0].Addr != b || len(p.Adverts) != 1 || p.Adverts[0].Addr != b {
		t.Errorf("what is not bound stays: %+v", p)
	}
	want[a] = bpf.Lease{Bound: true}
	if got := leasesOf(p); !maps.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestVIPsOfThisNodeAreCountedByWhatBecomesOfThem(t *testing.T) {
	s := fsm.New()
	for _, c := range oneNode(
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("10.0.0.1")}},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("10.0.0.2"), OnQuorumLoss: fsm.QuorumHold}},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("10.0.0.3"), OnQuorumLoss: fsm.QuorumRelease}},
		fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true},
	) {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	if bound, free := boundVIPs(s, "lb1"); bound != 2 || free != 1 {
		t.Errorf("%d bound, %d free", bound, free)
	}
	if bound, free := boundVIPs(s, "lb2"); bound+free != 0 {
		t.Errorf("another node has %d and %d", bound, free)
	}
}

func TestLogThatDoesNotGetOnIsNoticed(t *testing.T) {
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	var c contact
	stuck := func(ms, applied int) bool {
		c.fresh(at(ms), at(ms), uint64(applied))
		return c.stuck(at(ms), 2*time.Second)
	}
	c.answer(at(0), 10)
	if stuck(1, 10) || stuck(5000, 10) {
		t.Fatal("all that was said is applied")
	}
	c.answer(at(5000), 11)
	for ms := 5100; ms < 7000; ms += 100 {
		if stuck(ms, 10) {
			t.Fatalf("after %d ms", ms-5000)
		}
		c.answer(at(ms), 11) // asked again, which does not begin it anew
	}
	if !stuck(7100, 10) {
		t.Fatal("not noticed")
	}
	if stuck(7200, 11) {
		t.Fatal("stuck although it got on")
	}
	c.answer(at(7200), 12)
	c.fresh(at(7300), at(7300), 11)
	if c.stuck(at(9900), 2*time.Second) {
		t.Fatal("who hears nobody is cut off, not stuck")
	}
}

func TestNodeThatSeesNoMajorityIsOutnumbered(t *testing.T) {
	for _, r := range []struct {
		lost, members int
		want          bool
	}{
		{0, 1, false}, {0, 2, false}, {1, 2, true}, {1, 3, false}, {2, 3, true}, {1, 4, false}, {2, 4, true}, {2, 5, false}, {3, 5, true},
	} {
		if got := outnumbered(r.lost, r.members); got != r.want {
			t.Errorf("%d of %d lost: %t", r.lost, r.members, got)
		}
	}
}

// Several nodes hold what routes lead to them: none may answer for it on a link.
func TestNobodyAnswersForWhatRoutesLeadTo(t *testing.T) {
	onLink, routed, elsewhere := addr("192.168.80.200"), addr("203.0.113.1"), addr("192.168.80.201")
	got := leasesOf(plan.Plan{
		Managed:   []netip.Addr{onLink, routed, elsewhere},
		Addresses: []plan.Address{{Addr: onLink, Link: "eth1", Epoch: 7, Bound: true}, {Addr: routed, Link: plan.Loopback, Epoch: 7, Bound: true}},
	})
	for a, want := range map[netip.Addr]bool{onLink: true, routed: false, elsewhere: false} {
		if l, known := got[a]; !known || l.Held != want {
			t.Errorf("%s: %+v, %t", a, l, known)
		}
	}
}
