package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// leads waits until every running node agrees on a leader that is, or is not, n.
func leads(t testing.TB, l *lab.Lab, n *lab.Node, is bool) *lab.Node {
	t.Helper()
	found := ""
	eventually(t, 15*time.Second, "a leader", func(ctx context.Context) error {
		found = ""
		for _, one := range l.Nodes() {
			if !one.Powered() {
				continue
			}
			s, err := one.Status(ctx)
			if err != nil {
				return err
			}
			now := s.Cluster.Leader
			if now == "" || found != "" && now != found || (now == n.Name()) != is {
				return fmt.Errorf("%s says %q", one.Name(), now)
			}
			found = now
		}
		return nil
	})
	return l.Node(found)
}

// A leader that is master hands leadership on when all is calm, and neither old
// nor new connections nor writes notice.
func TestLeadershipLeavesTheMasterOnceAllIsCalm(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients, prober := connect(t, l, 50), probe(t, l)
	steady(t, clients)
	late := stalls(t)
	m := master(t, l, "")
	w := clients.Window()
	prober.Window()
	leader := leads(t, l, m, false)
	for i := range 20 { // a write at any moment is taken
		cli(t, m, "instance", "create", fmt.Sprintf("i%d", i))
	}
	progressed(t, w, restartGap, late)
	if r := prober.Result(); r.Failed > 0 {
		t.Errorf("new connections meanwhile: %+v", r)
	}
	if again := master(t, l, ""); again != m {
		t.Errorf("%s became master", again.Name())
	}
	if text := cli(t, m, "events"); !strings.Contains(text, leader.Name()+" leads the cluster") {
		t.Errorf("events:\n%s", text)
	}

	// The leader survives its master: nobody has to be elected.
	term := status(t, leader).Cluster.Term
	w = clients.Window()
	if err := m.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := takenOver(t, l, w, m, failoverGap, late)
	f := timeline(t, l, next)
	inOrder(t, f, 3000, "detected", "confirmed", "committed", "announced", "first_packet")
	if s := status(t, leader); s.Cluster.Term != term || f.Parts["elected"] != 0 {
		t.Errorf("term %d after %d, %v", s.Cluster.Term, term, f.Parts)
	}
	if next == leader {
		t.Error("the next master leads: leadership went to the first in the succession")
	}
}
