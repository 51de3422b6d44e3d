package e2e

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/arping"
)

// overlap is for how long two nodes answered for the VIP.
func overlap(a *inquirer, from time.Time) time.Duration {
	claims := slices.DeleteFunc(a.prober.Since(time.Since(from)), func(c arping.Claim) bool { return c.Address != lab.ServiceVIP() })
	return arpFeltOf(claims).Overlap
}

// A daemon that stops in order leaves its kernel answering for a while. Who asks meanwhile for a move has to
// wait until that is over: two would answer otherwise.
func TestAMoveWaitsForADaemonThatStopped(t *testing.T) {
	t.Parallel()
	l, a := leaseCluster(t)
	m := master(t, l, "")
	next := others(l, m)[0]
	late := stalls(t)
	began := time.Now()
	if err := m.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	stopped := time.Since(began)
	cli(t, next, "instance", "move", "default", "--to", next.Name())
	moved := time.Since(began)
	t.Logf("the daemon of %s had stopped after %s, the move was done after %s", m.Name(), stopped, moved)
	if moved < 4*time.Second {
		t.Errorf("%s answers for five seconds more, and the move was done after %s", m.Name(), moved)
	}
	a.waitAnswer(t, 5*time.Second, lab.ServiceVIP(), next)
	pass(t, leaseLength)
	both, gap := overlap(a, began), a.longest(began, lab.ServiceVIP())
	t.Logf("two answered for %s, nobody for %s", both, gap)
	if both > leaseMargin+late() {
		t.Errorf("two answered for %s", both)
	}
	if gap > 3*leaseLength+late() { // a daemon that nobody waits for is not answered for longer
		t.Errorf("nobody answered for %s", gap)
	}
	if err := m.Start(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	waitOnlyHolder(t, releaseTime, l, next.Name(), lab.ServiceVIP())
}

// With the default settings a daemon that a supervisor starts again at once keeps its instances, and one that stays
// away loses them before a client has waited for long.
func TestAKilledDaemonHasTheTimeOfARestart(t *testing.T) {
	l, a := leaseCluster(t)
	m := master(t, l, "")
	before := epoch(t, m)
	var away time.Duration // at the longest
	for range 2 {
		killed := time.Now()
		if err := m.Kill(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitUp(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		away = max(away, time.Since(killed))
		waitHealthy(t, l)
	}
	switch after := epoch(t, m); {
	case after == before && master(t, l, "") == m:
	case away > 2500*time.Millisecond: // what is promised is less
		t.Logf("this machine needs %s to start a daemon: its instances were not waited for", away)
		m = master(t, l, "")
	default:
		t.Errorf("epoch %d became %d over restarts of %s", before, after, away)
	}
	late := stalls(t)
	began := time.Now()
	if err := m.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := masterBy(t, others(l, m), m)
	took := time.Since(began)
	a.waitAnswer(t, 5*time.Second, lab.ServiceVIP(), next)
	gap := a.longest(began, lab.ServiceVIP())
	t.Logf("%s took over after %s, nobody answered for %s", next.Name(), took, gap)
	if took < 2500*time.Millisecond || gap > 4*time.Second+late() { // 3 s, from when it was heard of last
		t.Errorf("taken over after %s, silence %s", took, gap)
	}
}

// Who stops the leader does not make the others wait for Raft's timers, and what it leaves is known to its heir.
func TestALeaderThatStopsHandsOver(t *testing.T) {
	l, _ := leaseCluster(t)
	s, err := l.Nodes()[0].Status(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	old := l.Node(s.Cluster.Leader)
	if err := old.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	// It had handed over before it ended.
	eventually(t, time.Second, "another leader", func(ctx context.Context) error {
		s, err := others(l, old)[0].Status(ctx)
		if err == nil && (s.Cluster.Leader == "" || s.Cluster.Leader == old.Name()) {
			return errors.New("it is " + s.Cluster.Leader)
		}
		return err
	})
	if err := old.Start(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
}
