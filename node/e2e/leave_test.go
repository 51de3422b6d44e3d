package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// memberFiles are the files that make a data directory a member's. The API
// token and the lock are the machine's own and stay.
func memberFiles(t testing.TB, n *lab.Node) []string {
	t.Helper()
	var found []string
	entries, err := os.ReadDir(n.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" && e.Name() != "api.token" {
			found = append(found, e.Name())
		}
	}
	return found
}

// refused runs a command that must fail with status 1 and one line that holds
// all of the words.
func refused(t testing.TB, n *lab.Node, words string, args ...string) {
	t.Helper()
	_, err := n.CLI(within(t, 30*time.Second), args...)
	checkRefusal(t, err, words)
}

func checkRefusal(t testing.TB, err error, words string) {
	t.Helper()
	if err == nil {
		t.Errorf("was done, want it refused with %q", words)
		return
	}
	_, said, ok := strings.Cut(err.Error(), "exit status 1: ")
	switch {
	case !ok:
		t.Errorf("want exit status 1: %v", err)
	case strings.Contains(said, "\n"):
		t.Errorf("want one line, got:\n%s", said)
	case !strings.HasPrefix(said, "pontoon: "):
		t.Errorf("want a line of pontoon, got %q", said)
	default:
		t.Logf("refused: %s", said)
	}
	for _, w := range strings.Split(words, "|") {
		if !strings.Contains(said, w) {
			t.Errorf("want %q in %q", w, said)
		}
	}
}

// join makes n a member through via with a fresh token.
func join(t testing.TB, n, via *lab.Node) {
	t.Helper()
	token := strings.TrimSpace(cli(t, via, "token", "create"))
	cli(t, n, "join", via.ClusterAddress().String(), "--token", token)
}

// waitMembers waits until every node given knows exactly so many members.
func waitMembers(t testing.TB, want int, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, 10*time.Second, n.Name()+" to know the members", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err == nil && len(s.Nodes) != want {
				err = errors.New("it knows others")
			}
			return err
		})
	}
}

func TestLeavingLosesNothing(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "dnat", true)
	clients := connect(t, l, 100)
	steady(t, clients)
	leaver := master(t, l, "")
	var rest []*lab.Node
	for _, n := range l.Nodes() {
		if n != leaver {
			rest = append(rest, n)
		}
	}
	waitSameFlows(t, l.Nodes(), 100)

	late := stalls(t)
	w := clients.Window()
	cli(t, leaver, "leave")
	progressed(t, w, restartGap, late)
	waitMembers(t, 2, rest...)
	next := master(t, l, leaver.Name())
	if err := onlyHolder(l, next.Name(), lab.ServiceVIP(), lab.GatewayVIP()); err != nil {
		t.Errorf("after leave: %v", err)
	}
	if left := memberFiles(t, leaver); len(left) > 0 {
		t.Errorf("after leave its data directory still has %v", left)
	}
	if _, err := os.Stat(leaver.PinDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after leave its pins: %v", err)
	}
	// The one that left speaks, and says how to go on.
	refused(t, leaver, "pontoon init|pontoon join", "status")

	w = clients.Window()
	join(t, leaver, next)
	waitHealthy(t, l)
	progressed(t, w, restartGap, late)
	waitSameFlows(t, l.Nodes(), 100)
	if m := master(t, l, ""); m != next {
		t.Errorf("%s took the mastership back by joining", m.Name())
	}

	t.Run("nor when the leader leaves", func(t *testing.T) {
		m := master(t, l, "")
		leader := l.Node(status(t, m).Cluster.Leader)
		w := clients.Window()
		cli(t, leader, "leave")
		var left []*lab.Node
		for _, n := range l.Nodes() {
			if n != leader {
				left = append(left, n)
			}
		}
		waitMembers(t, 2, left...)
		cli(t, left[0], "service", "create", "after", "--vip", lab.ServiceVIP().String(), "--port", "81", "--mode", "fullnat",
			"--endpoint", "10.2.0.21:8080")
		progressed(t, w, restartGap, late)
		join(t, leader, left[1])
		waitHealthy(t, l)
	})
}

func TestTheLastVoterLeavesOnlyByForce(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 1})
	n := l.Nodes()[0]
	cli(t, n, "vip", "create", lab.ServiceVIP().String())
	waitOnlyHolder(t, 5*time.Second, l, n.Name(), lab.ServiceVIP())
	before := memberFiles(t, n)
	refused(t, n, "last voter|--force", "leave")
	if m := status(t, n).Master("default"); m != n.Name() {
		t.Errorf("after a refused leave the master is %q", m)
	}
	if after := memberFiles(t, n); len(after) != len(before) {
		t.Errorf("a refused leave made %v of %v", after, before)
	}
	cli(t, n, "leave", "--force")
	if left := memberFiles(t, n); len(left) > 0 {
		t.Errorf("left in its data directory: %v", left)
	}
	if where, err := holds(n, lab.ServiceVIP()); err != nil || where != "" {
		t.Errorf("the VIP is still held on %q (%v)", where, err)
	}
	if pins, _ := filepath.Glob(filepath.Join(n.PinDir(), "*")); len(pins) > 0 {
		t.Errorf("pins left: %v", pins)
	}
	cli(t, n, "init") // and it is free for another cluster
}
