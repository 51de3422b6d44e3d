package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// newCluster forms a cluster of all the lab's nodes and waits until each could
// be master.
func newCluster(t testing.TB, cfg lab.Config) *lab.Lab {
	t.Helper()
	l := newLab(t, cfg)
	nodes := l.Nodes()
	cli(t, nodes[0], "init")
	for _, n := range nodes[1:] {
		token := strings.TrimSpace(cli(t, nodes[0], "token", "create"))
		cli(t, n, "join", nodes[0].ClusterAddress().String(), "--token", token)
	}
	waitHealthy(t, l)
	return l
}

// longGrace keeps the instances of a daemon that is away where they are for longer than a busy machine needs to start it
// again. With the default, which is tested by itself, it may take more.
func longGrace() []string {
	return []string{"--agent-grace", roottest.Patient(10 * time.Second).String()}
}

func names(l *lab.Lab) []string {
	var out []string
	for _, n := range l.Nodes() {
		out = append(out, n.Name())
	}
	return out
}

// waitHealthy waits until every running node sees every node healthy.
func waitHealthy(t testing.TB, l *lab.Lab) {
	t.Helper()
	for _, n := range l.Nodes() {
		err := lab.WaitFor(within(t, 30*time.Second), n.Name()+" to see all nodes healthy", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			return s.CheckHealthy(names(l)...)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestThreeNodesFormACluster(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Nodes: 3})
	s, err := l.Nodes()[2].Status(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if s.Master("default") == "" {
		t.Error("no master")
	}
}
