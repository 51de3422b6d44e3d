package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
	"pontoon/internal/roottest"
)

// build compiles the product under another name of its version.
func build(t testing.TB, version string, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "pontoon-"+version)
	args := append([]string{"build", "-o", out, "-ldflags", "-s -w -X main.version=" + version}, flags...)
	cmd := exec.CommandContext(within(t, 3*time.Minute), "go", append(args, "pontoon/cmd/pontoon")...)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, said)
	}
	return out
}

// replaceBinary restarts a node's daemon as another build, as a package upgrade does.
func replaceBinary(t testing.TB, l *lab.Lab, n *lab.Node, binary string) {
	t.Helper()
	if err := n.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.SetBinary(binary)
	if err := n.Start(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, n, "data_plane", "adopted")
	waitHealthy(t, l)
}

// versionOf is the version of the daemon that runs on n.
func versionOf(t testing.TB, n *lab.Node) string {
	t.Helper()
	var s struct {
		Version string `json:"version"`
	}
	if err := get(within(t, 10*time.Second), n, "/v1/status", &s); err != nil {
		t.Fatal(err)
	}
	return s.Version
}

// waitRecordVersion waits until n's streams run with records of the versions wanted, by peer.
func waitRecordVersion(t testing.TB, n *lab.Node, want map[string]uint16) {
	t.Helper()
	eventually(t, 20*time.Second, "records of the common version", func(ctx context.Context) error {
		var r replicated
		if err := get(ctx, n, "/v1/replication", &r); err != nil {
			return err
		}
		for _, p := range r.Peers {
			if p.State != "streaming" || p.Version != want[p.Peer] {
				return fmt.Errorf("%s to %s is %s with records of version %d, want %d", n.Name(), p.Peer, p.State, p.Version, want[p.Peer])
			}
		}
		return nil
	})
}

// upgrade is a cluster under traffic whose daemons are replaced.
type upgrade struct {
	*lab.Lab
	clients *traffic.Clients
	prober  *traffic.Prober
	conns   int
}

// step does something that nobody may notice: connections go on, new ones are
// taken, and afterwards all nodes hold the same flows.
func (u *upgrade) step(t *testing.T, name string, do func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		w := u.clients.Window()
		u.prober.Window()
		do(t)
		if err := u.prober.Succeeding(within(t, 10*time.Second), 10); err != nil {
			t.Error(err)
		}
		if r := u.prober.Result(); r.Failed > 0 {
			t.Errorf("new connections: %+v", r)
		}
		unharmed(t, w)
		waitEqualTables(t, u.conns, u.Nodes()...)
	})
	if t.Failed() {
		t.FailNow()
	}
}

// Three builds, one of them with records of another layout, run beside each
// other and replace each other in turn; traffic never stops.
func TestBuildsReplaceEachOtherUnderTraffic(t *testing.T) {
	t.Parallel()
	roottest.Need(t)
	second := build(t, "v1.1.0")
	third := build(t, "v2.0.0", "-tags", "pontoon_record_next")
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2, NodeArgs: longGrace()})
	serve(t, l)
	declare(t, l, "fullnat", true)
	u := &upgrade{Lab: l, conns: 200, clients: connect(t, l, 200), prober: probe(t, l)}
	n := l.Nodes()
	steady(t, u.clients)
	waitEqualTables(t, u.conns, n...)

	u.step(t, "a second build joins in", func(t *testing.T) { replaceBinary(t, l, n[1], second) })
	u.step(t, "a third build with other records joins in", func(t *testing.T) {
		replaceBinary(t, l, n[2], third)
		waitRecordVersion(t, n[0], map[string]uint16{"lb2": 2, "lb3": 2})
		waitRecordVersion(t, n[2], map[string]uint16{"lb1": 2, "lb2": 2})
		versions := map[string]bool{}
		for _, n := range n {
			versions[versionOf(t, n)] = true
		}
		if len(versions) != 3 {
			t.Errorf("three builds were to run, and these do: %v", versions)
		}
	})
	for _, to := range []string{"lb3", "lb2", "lb1"} {
		whole := t
		u.step(t, "master is "+to, func(t *testing.T) {
			if m := master(t, l, ""); m.Name() != to {
				cli(t, n[0], "instance", "move", "default", "--to", to)
			}
			waitOnlyHolder(t, 10*time.Second, l, to, lab.ServiceVIP(), lab.GatewayVIP())
			steady(t, connect(whole, l, 20)) // flows of this master, in its own records
			u.conns += 20
		})
	}
	u.step(t, "the second build is replaced", func(t *testing.T) { replaceBinary(t, l, n[1], third) })
	u.step(t, "the first build is replaced, which is master", func(t *testing.T) {
		replaceBinary(t, l, n[0], third)
		waitRecordVersion(t, n[0], map[string]uint16{"lb2": 3, "lb3": 3})
	})
	u.step(t, "and back again", func(t *testing.T) { replaceBinary(t, l, n[0], second) })
	u.step(t, "the master's flow table gets another size", func(t *testing.T) {
		n[0].SetArgs("--max-flows", "131072")
		replaceBinary(t, l, n[0], second)
		var count struct {
			Max uint64 `json:"max"`
		}
		if err := get(within(t, 10*time.Second), n[0], "/v1/flows/count", &count); err != nil || count.Max != 131072 {
			t.Errorf("the table has room for %d (%v)", count.Max, err)
		}
	})
}
