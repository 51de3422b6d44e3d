package e2e

import (
	"testing"
	"time"

	"pontoon/internal/lab"
)

// A master that loses its power together with the quorum is declared dead by
// nobody. It comes back with an empty flow table, and must not make the one that
// knows the flows forget them.
func TestAMasterThatRebootsUnnoticedDoesNotEndItsFlows(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 50)
	waitSameFlows(t, l.Nodes(), 50)
	m := master(t, l, "")
	var others []*lab.Node
	for _, n := range l.Nodes() {
		if n != m {
			others = append(others, n)
		}
	}
	w := clients.Window()
	ctx := within(t, 30*time.Second)
	for _, n := range []*lab.Node{others[0], m} {
		if err := n.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*lab.Node{m, others[0]} {
		if err := n.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
	}
	waitHealthy(t, l)
	unharmed(t, w)
	waitSameFlows(t, l.Nodes(), 50)
	if last := master(t, l, ""); last != others[1] {
		t.Errorf("%s is master; only %s knew the flows", last.Name(), others[1].Name())
	}
}
