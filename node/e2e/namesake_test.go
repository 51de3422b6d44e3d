package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// waitThree waits until each of the nodes sees lb1, lb2 and lb3 healthy, with
// lb3 at the address of third.
func waitThree(t testing.TB, third *lab.Node, on ...*lab.Node) {
	t.Helper()
	for _, n := range on {
		eventually(t, 30*time.Second, n.Name()+" to see three nodes healthy", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if got := nodeAddress(ctx, n, "lb3"); got != third.ClusterAddress().String() {
				return fmt.Errorf("lb3 is at %q", got)
			}
			return s.CheckHealthy("lb1", "lb2", "lb3")
		})
	}
}

// nodeAddress is where n has a member of that name, "" if it has none.
func nodeAddress(ctx context.Context, n *lab.Node, name string) string {
	var s struct {
		Nodes []struct {
			Name    string `json:"name"`
			Address string `json:"address"`
		} `json:"nodes"`
	}
	if err := get(ctx, n, "/v1/status", &s); err != nil {
		return ""
	}
	for _, m := range s.Nodes {
		if m.Name == name {
			return m.Address
		}
	}
	return ""
}

// waitRefusal waits until one of the nodes has said in its log that it turned
// away a machine whose name another has. The first refusal tells that machine
// that it is no member any more, so it need not come to the others.
func waitRefusal(t testing.TB, nodes ...*lab.Node) {
	t.Helper()
	eventually(t, 15*time.Second, "a member to refuse the old lb3", func(context.Context) error {
		for _, n := range nodes {
			log, err := os.ReadFile(n.LogFile())
			if err != nil {
				return err
			}
			if bytes.Contains(log, []byte("node lb3: its certificate is not the one it joined with")) {
				return nil
			}
		}
		return errors.New("no log says so")
	})
}

// A machine that was cut off while its name was given to another has a
// certificate for that name, and believes itself a member.
func TestAMachineWhoseNameAnotherHasIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Topology: lab.OneLeg, Nodes: 4})
	first, second, old, heir := l.Nodes()[0], l.Nodes()[1], l.Nodes()[2], l.Nodes()[3]
	restart(t, heir, "--name", "lb3")
	cli(t, first, "init")
	for _, n := range []*lab.Node{second, old} {
		cli(t, n, "join", first.ClusterAddress().String(), "--token", newToken(t, first))
	}
	waitThree(t, old, first, second, old)
	cli(t, first, "vip", "create", lab.ServiceVIP().String())

	if err := old.LinksDown(); err != nil {
		t.Fatal(err)
	}
	cli(t, first, "node", "remove", "lb3")
	cli(t, heir, "join", first.ClusterAddress().String(), "--token", newToken(t, first))
	waitThree(t, heir, first, second, heir)

	if err := old.LinksUp(); err != nil {
		t.Fatal(err)
	}
	waitRefusal(t, first, second)
	lettingGo(t, 15*time.Second, old)
	refused(t, old, "was removed from its cluster|pontoon leave", "node", "drain", "lb1")
	waitThree(t, heir, first, second, heir)

	// It is no different for a daemon that starts again and knows nothing yet.
	restart(t, old)
	lettingGo(t, 15*time.Second, old)
	// And the one that has the name now survives a restart of all who know it.
	for _, n := range []*lab.Node{first, second} {
		restart(t, n)
	}
	waitThree(t, heir, first, second, heir)
	cli(t, old, "leave")
	waitThree(t, heir, first, second, heir)
}
