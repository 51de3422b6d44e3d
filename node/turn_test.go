package node

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
	"pontoon/fsm"
	"pontoon/node/host"
)

// An address is taken up when its services are in the data plane; it does not wait for verdicts on endpoints.
func TestWhatATakeoverWaitsFor(t *testing.T) {
	well := mourning(t, 3)
	lost := applied(t, well, fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb2"})
	taken := func(s *fsm.State) *fsm.State {
		return applied(t, s, fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb1"})
	}
	died := judged(t, lost, fsm.HealthDown)
	other := applied(t, lost, fsm.DeleteService{Name: "service-00001"})
	moved := []host.Link{{Name: "eth1", Prefixes: benchSelf.Links[0].Prefixes}}
	const before, after, never = "before", "after", "never"
	for name, tc := range map[string]struct {
		next   *fsm.State
		links  []host.Link
		failed bool // the data plane has not taken what it was given last
		want   string
	}{
		"nothing":                           {next: lost, want: never},
		"verdicts":                          {next: died, want: before},
		"a takeover":                        {next: taken(lost), want: after},
		"a takeover with verdicts":          {next: taken(died), want: after},
		"a takeover with another service":   {next: taken(other), want: before},
		"a takeover with verdicts and that": {next: taken(judged(t, other, fsm.HealthDown)), want: before},
		"a takeover with other links":       {next: taken(died), links: moved, want: before},
		"a takeover after a failure":        {next: taken(lost), failed: true, want: before},
		"nothing after a failure":           {next: lost, failed: true, want: before},
	} {
		d := &driver{m: &member{cfg: Config{Name: "lb1"}}}
		links := []host.Link{moved[0], {Name: "eth2", Prefixes: benchSelf.Links[1].Prefixes}}
		d.draw(&turn{s: lost, links: links})
		if d.syncedAt = time.Now(); tc.failed {
			d.syncedAt = time.Time{}
		}
		if tc.links != nil {
			links = tc.links
		}
		next := &turn{s: tc.next, links: links}
		d.draw(next)
		got := never
		switch {
		case next.due.first:
			got = before
		case next.due.news:
			got = after
		}
		if got != tc.want {
			t.Errorf("%s: the data plane is given its services %s the addresses, want %s", name, got, tc.want)
		}
	}
}

func applied(t testing.TB, s *fsm.State, c fsm.Command) *fsm.State {
	t.Helper()
	next, err := s.Apply(s.Index()+1, c)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// Whatever comes first, one turn does all of it.
func TestATakeoverAndVerdictsInOneTurn(t *testing.T) {
	bpftest.RequirePrivilege(t)
	d := newTakeUp(t)
	carry := func(s *fsm.State) (err error) {
		d.ns.Do(func() { err = d.carryOut(t.Context(), s, true) })
		return err
	}
	lost := applied(t, mourning(t, 5), fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb2"})
	if err := carry(lost); err != nil {
		t.Fatal(err)
	}
	if n := len(d.m.local.get().holding); n != 0 {
		t.Fatalf("a backup holds %d addresses", n)
	}
	began := time.Now()
	next := applied(t, judged(t, lost, fsm.HealthDown), fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb1"})
	if err := carry(next); err != nil {
		t.Fatal(err)
	}
	var want []netip.Addr
	for _, v := range next.VIPs() {
		want = append(want, v.Address)
	}
	if v := d.m.local.get(); len(v.holding) != len(want) || !v.ready || v.plan != next.Index() {
		t.Errorf("it holds %d addresses of %d, ready %t, at %d of %d", len(v.holding), len(want), v.ready, v.plan, next.Index())
	}
	if d.syncedAt.Before(began) {
		t.Error("the data plane was not told of the dead")
	}
}
