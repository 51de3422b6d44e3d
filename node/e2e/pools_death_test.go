package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// answersOf are what clients were told about services on addresses of a pool.
type answersOf struct {
	mu   sync.Mutex
	told map[netip.Addr]string // who was given each address
	open map[string]bool       // the services of which nobody knows whether they were created
}

// note takes in what a node has answered.
func (a *answersOf) note(t *testing.T, n *lab.Node, name string, got given, err error) {
	t.Helper()
	refused := new(lab.APIError)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err != nil && errors.As(err, &refused) && refused.Status < http.StatusInternalServerError:
		t.Errorf("%s: %s: %v", n.Name(), name, err)
	case err != nil:
		a.open[name] = true
	default:
		if other, taken := a.told[got.VIP.Address]; taken {
			t.Errorf("%s and %s both have %s", name, other, got.VIP.Address)
		}
		a.told[got.VIP.Address] = name
	}
}

// throughALeadersDeath has services created on all nodes while the leader dies. What was told stays true, what nobody was told of
// was done once or not at all, and no address is two services'.
func throughALeadersDeath(t *testing.T, l *lab.Lab) {
	const workers, steps = 6, 10
	ctx := within(t, 60*time.Second)
	victim := leader(t, l)
	var g errgroup.Group
	answers, done := &answersOf{told: map[netip.Addr]string{}, open: map[string]bool{}}, make(chan struct{}, workers*steps)
	for w := range workers {
		g.Go(func() error {
			n := l.Nodes()[w%len(l.Nodes())]
			for i := range steps {
				name := fmt.Sprintf("d%d-%d", w, i)
				got, err := createAuto(ctx, n, name, "wide")
				done <- struct{}{}
				answers.note(t, n, name, got, err)
				if err != nil && n == victim {
					return nil // it is dead, and so are its clients
				}
			}
			return nil
		})
	}
	for range workers * 3 {
		<-done
	}
	if err := victim.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	other := l.Nodes()[0]
	if other == victim {
		other = l.Nodes()[1]
	}
	if said := cli(t, other, "pool", "create", "unseen", "--range", "10.97.0.1-10.97.0.9"); !strings.Contains(said, "note: "+victim.Name()+" could not be asked") {
		t.Errorf("a pool that a dead node was not asked about is made with the words %q", said)
	}
	if err := victim.Start(ctx); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	waitApplied(t, l)
	t.Logf("the leader was %s", victim.Name())
	answers.hold(t, l)
}

// hold holds what the nodes have of the pool wide against what clients were told.
func (a *answersOf) hold(t *testing.T, l *lab.Lab) {
	t.Helper()
	t.Logf("%d were told their address, of %d it is not known whether they were created", len(a.told), len(a.open))
	for _, n := range l.Nodes() {
		p := readPool(t, n, "wide")
		has := p.owners()
		for at, name := range a.told {
			if has[at] != name {
				t.Errorf("%s has %q on %s, and %s was told so", n.Name(), has[at], at, name)
			}
		}
		for at, name := range has {
			if a.told[at] != name && !a.open[name] {
				t.Errorf("%s has %q on %s, of which nobody was told", n.Name(), name, at)
			}
		}
		if p.Used != len(has) {
			t.Errorf("%s: %d used, %d handed out", n.Name(), p.Used, len(has))
		}
	}
}
