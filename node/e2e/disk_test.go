package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// hurtDisk says what is wrong with a node's disk from now on; "" heals it.
func hurtDisk(t *testing.T, n *lab.Node, wrong string) {
	t.Helper()
	path := filepath.Join(n.DataDir(), "faults.json")
	err := os.Remove(path)
	if wrong != "" {
		err = os.WriteFile(path, []byte(wrong), 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// A leader whose disk hangs, or takes nothing, is replaced; if it was master too,
// another node becomes that, and no connection is lost. Its daemon lives on, and when
// the disk is well it is a member like the others.
func TestANodeWhoseDiskFailsIsReplaced(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2, Binary: faultsBinary(t)})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 50)
	for _, tc := range []struct{ name, wrong string }{
		{"it hangs", `{"delay_ms":60000}`},
		{"it takes nothing", `{"error":"no space left on device"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			waitHealthy(t, l)
			leader := l.Node(status(t, l.Nodes()[0]).Cluster.Leader)
			cli(t, l.Nodes()[0], "instance", "move", "default", "--to", leader.Name())
			waitHealthy(t, l)
			waitSameFlows(t, l.Nodes(), 50)
			process := leader.Process()
			w := clients.Window()
			hurtDisk(t, leader, tc.wrong)
			var next *lab.Node
			began := time.Now()
			eventually(t, 20*time.Second, "another leader and another master", func(ctx context.Context) error {
				for _, n := range l.Nodes() {
					if n == leader {
						continue
					}
					s, err := n.Status(ctx)
					if err != nil {
						return err
					}
					if m := s.Master("default"); s.Cluster.Leader == leader.Name() || s.Cluster.Leader == "" || m == leader.Name() || m == "" {
						return fmt.Errorf("for %s %s leads and %s is master", n.Name(), s.Cluster.Leader, m)
					}
					next = l.Node(s.Master("default"))
				}
				return nil
			})
			t.Logf("replaced after %s", time.Since(began).Round(time.Millisecond))
			waitOnlyHolder(t, 5*time.Second, l, next.Name(), lab.ServiceVIP(), lab.GatewayVIP())
			unharmed(t, w)
			waitEvent(t, leader, "disk", "disk of the data directory")
			hurtDisk(t, leader, "")
			waitHealthy(t, l)
			if leader.Process() != process || !process.Running() {
				t.Error("the daemon did not survive")
			}
			unharmed(t, w)
		})
	}
}
