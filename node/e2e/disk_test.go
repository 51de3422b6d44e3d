package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
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
	t.Parallel()
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

// A disk that hangs does not keep the daemon from ending when it is told to, and it says why.
func TestADaemonEndsAlthoughItsDiskHangs(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Binary: faultsBinary(t)})
	n := l.Node(status(t, l.Nodes()[0]).Cluster.Leader)
	process := n.Process()
	hurtDisk(t, n, `{"delay_ms":600000}`)
	waitEvent(t, n, "disk", "disk of the data directory")
	began := time.Now()
	if err := n.Terminate(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > roottest.Patient(15*time.Second) {
		t.Errorf("it took %s", took)
	}
	if err := process.Wait(t.Context()); err == nil {
		t.Error("it says that all is well")
	}
	if log, err := os.ReadFile(n.LogFile()); err != nil || !strings.Contains(string(log), "pontoon: stop: not done within 8s") || !strings.Contains(string(log), "hangs") {
		t.Errorf("its log does not say why: %v\n%s", err, log)
	}
	hurtDisk(t, n, "")
	if err := n.Start(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
}

// A machine whose disk takes nothing is told so by init, and begins when it is well.
func TestInitOnAFailingDiskIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Topology: lab.OneLeg, Nodes: 1, Binary: faultsBinary(t)})
	n := l.Nodes()[0]
	if err := os.MkdirAll(n.DataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	hurtDisk(t, n, `{"error":"no space left on device"}`)
	began := time.Now()
	_, err := n.CLI(within(t, 30*time.Second), "init")
	t.Logf("after %s: %v", time.Since(began), err)
	if err == nil || !strings.Contains(err.Error(), "bootstrap raft") || !strings.Contains(err.Error(), "no space left on device") {
		t.Error("it was not refused for its disk")
	}
	hurtDisk(t, n, "")
	cli(t, n, "init")
	waitHealthy(t, l)
}
