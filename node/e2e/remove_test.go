package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// rejoined takes a removed node through leave and join.
func rejoined(t testing.TB, l *lab.Lab, n, by *lab.Node) {
	t.Helper()
	cli(t, n, "leave")
	token := strings.TrimSpace(cli(t, by, "token", "create"))
	cli(t, n, "join", by.ClusterAddress().String(), "--token", token)
	waitHealthy(t, l)
}

// lettingGo waits until a removed node holds no VIP and says what it is.
func lettingGo(t testing.TB, d time.Duration, n *lab.Node) {
	t.Helper()
	err := lab.WaitFor(within(t, d), n.Name()+" to know that it was removed", func(ctx context.Context) error {
		if link, err := holds(n, lab.ServiceVIP()); err != nil || link != "" {
			return errors.Join(err, fmt.Errorf("it holds the VIP on %s", link))
		}
		out, err := n.CLI(ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		if !strings.Contains(out, "this node was removed from its cluster") {
			return errors.New("its status does not say so")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// others are the nodes but not these.
func others(l *lab.Lab, not ...*lab.Node) []*lab.Node {
	return slices.DeleteFunc(slices.Clone(l.Nodes()), func(n *lab.Node) bool { return slices.Contains(not, n) })
}

func TestARemovedMasterLetsGoAndMayJoinAgain(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", false)
	steady(t, connect(t, l, 20))

	t.Run("while it hears of it", func(t *testing.T) {
		old := master(t, l, "")
		by := others(l, old)[0]
		cli(t, by, "node", "remove", old.Name())
		lettingGo(t, 10*time.Second, old)
		if m := master(t, l, old.Name()); m == old {
			t.Error("it is master still")
		}
		refused(t, old, "was removed from its cluster|pontoon leave", "node", "drain", by.Name())
		rejoined(t, l, old, by)
	})
	t.Run("while it is cut off", func(t *testing.T) {
		old := master(t, l, "")
		by := others(l, old)[0]
		if err := old.LinksDown(); err != nil {
			t.Fatal(err)
		}
		master(t, l, old.Name())
		cli(t, by, "node", "remove", old.Name())
		if err := old.LinksUp(); err != nil {
			t.Fatal(err)
		}
		lettingGo(t, 15*time.Second, old)
		rejoined(t, l, old, by)
	})
	t.Run("while its daemon is dead", func(t *testing.T) {
		old := master(t, l, "")
		by := others(l, old)[0]
		if err := old.Kill(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		cli(t, by, "node", "remove", old.Name())
		if err := old.Start(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		lettingGo(t, 15*time.Second, old)
		rejoined(t, l, old, by)
	})
}
