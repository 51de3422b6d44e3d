package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// recoveryGap bounds how long connections stand still while nobody decides: the
// time the test takes to find that out and to recover (ten seconds), and TCP's next try after it, which comes after as long again.
const recoveryGap = 60 * time.Second

// recovered is what `pontoon recover -o json` prints.
type recovered struct {
	ClusterID string   `json:"cluster_id"`
	Survivor  string   `json:"survivor"`
	Fenced    []string `json:"fenced"`
	Recovered uint64   `json:"recovered"`
	Index     uint64   `json:"index"`
	Steps     []string `json:"steps"`
}

func recoverOn(t testing.TB, n *lab.Node, fenced ...string) recovered {
	t.Helper()
	var r recovered
	out := cli(t, n, "recover", "--i-have-fenced", strings.Join(fenced, ","), "-o", "json")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	slices.Sort(fenced)
	if r.Survivor != n.Name() || !slices.Equal(r.Fenced, fenced) || r.ClusterID == "" || r.Index == 0 || len(r.Steps) < 3 {
		t.Errorf("recover says %+v", r)
	}
	return r
}

// waitAlone waits until a node is without a quorum.
func waitAlone(t testing.TB, n *lab.Node) {
	t.Helper()
	eventually(t, 10*time.Second, n.Name()+" to miss its quorum", func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err == nil && s.Cluster.Quorum {
			err = errors.New("it has one")
		}
		return err
	})
}

// wipe gives a node an empty disk and starts it.
func wipe(t testing.TB, n *lab.Node) {
	t.Helper()
	if err := n.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(n.DataDir()), os.Mkdir(n.DataDir(), 0o700), n.Start(within(t, 5*time.Second)), n.WaitUp(within(t, 10*time.Second))); err != nil {
		t.Fatal(err)
	}
}

func powerOff(t testing.TB, n *lab.Node) {
	t.Helper()
	if err := n.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func powerOn(t testing.TB, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := n.PowerOn(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		if err := n.WaitUp(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

// withoutNote reads whom the status says the cluster was rebuilt without.
func withoutNote(t testing.TB, n *lab.Node) (without []string, noted bool) {
	t.Helper()
	var st struct {
		Summary struct {
			Notes []string `json:"notes"`
		} `json:"summary"`
		Cluster struct {
			Without []string `json:"without"`
		} `json:"cluster"`
	}
	if err := get(within(t, 5*time.Second), n, "/v1/status", &st); err != nil {
		t.Fatal(err)
	}
	return st.Cluster.Without, slices.ContainsFunc(st.Summary.Notes, func(s string) bool { return strings.Contains(s, "was rebuilt without") })
}

// From three nodes to two, to one that cannot decide, to one that can, to three.
func TestTheLastNodeRebuildsTheCluster(t *testing.T) {
	t.Parallel()
	const count = 50
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", false)
	clients := connect(t, l, count)
	steady(t, clients)
	waitSameFlows(t, l.Nodes(), count)

	first := master(t, l, "")
	bystander := others(l, first)[0]
	refused(t, bystander, "has a leader|pontoon node remove", "recover", "--i-have-fenced", first.Name())
	powerOff(t, first) // three become two
	second := master(t, l, first.Name())
	last := others(l, first)[0]
	if last == second {
		last = others(l, first)[1]
	}
	steady(t, clients)
	waitSameFlows(t, []*lab.Node{second, last}, count)
	w := clients.Window()

	// The second one's machine lives on when its daemon dies: it is not fenced.
	if err := second.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitAlone(t, last)
	both := first.Name() + "," + second.Name()
	refused(t, last, second.Name()+" still answers|fence it first", "recover", "--i-have-fenced", both)
	powerOff(t, second) // two become one
	refused(t, last, second.Name()+" is not named", "recover", "--i-have-fenced", first.Name())
	refused(t, last, "lb9 is no member", "recover", "--i-have-fenced", both+",lb9")
	if _, err := put(within(t, 15*time.Second), last, "/v1/services/lost", service("lost", 4000)); err == nil {
		t.Error("a change was taken without a quorum")
	}
	if err := last.LinksDown(); err != nil {
		t.Fatal(err)
	}
	refused(t, last, "no data plane interface of this node has a carrier", "recover", "--i-have-fenced", both)
	if err := last.LinksUp(); err != nil {
		t.Fatal(err)
	}
	before := cli(t, last, "service", "list", "-o", "json")

	r := recoverOn(t, last, first.Name(), second.Name())
	if m := master(t, l, second.Name()); m != last {
		t.Fatalf("%s is master", m.Name())
	}
	waitOnlyHolder(t, releaseTime, l, last.Name(), lab.ServiceVIP())
	progressed(t, w, recoveryGap, stalls(t))
	if after := cli(t, last, "service", "list", "-o", "json"); configOf(t, before) != configOf(t, after) {
		t.Errorf("services were\n%s\nand are\n%s", before, after)
	}
	if s := status(t, last); s.Cluster.ID != r.ClusterID || len(s.Nodes) != 1 {
		t.Errorf("%+v", s)
	}
	waitEvent(t, last, "recovery", "was rebuilt from "+last.Name()+" without "+first.Name()+" and "+second.Name())
	if without, noted := withoutNote(t, last); len(without) != 2 || !noted {
		t.Errorf("the status names %v, and says so: %v", without, noted)
	}

	// Both come back with their old disks at once: a majority of the old cluster.
	w = clients.Window()
	powerOn(t, first, second)
	for _, n := range []*lab.Node{first, second} {
		lettingGo(t, 20*time.Second, n)
	}
	waitOnlyHolder(t, releaseTime, l, last.Name(), lab.ServiceVIP())
	if s := status(t, last); len(s.Nodes) != 1 || s.Master("default") != last.Name() {
		t.Errorf("%+v", s)
	}
	progressed(t, w, failoverGap, stalls(t))

	// One is made new by leaving, the other by an empty disk: three again.
	cli(t, first, "leave")
	wipe(t, second)
	for _, n := range []*lab.Node{first, second} {
		join(t, n, last)
	}
	waitHealthy(t, l)
	if without, noted := withoutNote(t, second); len(without) != 0 || noted {
		t.Errorf("with three voters the status names %v", without)
	}
	waitSameFlows(t, l.Nodes(), count)
	w = clients.Window()
	powerOff(t, last)
	takenOver(t, l, w, last, failoverGap, stalls(t))
}

// configOf is a list of services without what changes by itself.
func configOf(t testing.TB, list string) string {
	t.Helper()
	var services []struct {
		Name, VIP, Protocol, Mode, Algorithm string
		Port                                 uint16
		Endpoints                            []struct {
			Address string
			Weight  uint16
		}
	}
	if err := json.Unmarshal([]byte(list), &services); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%+v", services)
}

// A witness that is left alone still has the whole configuration.
func TestAWitnessRebuildsTheCluster(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Witnesses: 1, Clients: 1, Endpoints: 2})
	nodes := l.Nodes()
	cli(t, nodes[0], "init")
	join(t, nodes[1], nodes[0])
	token := newToken(t, nodes[0], "--role", "witness")
	witness := nodes[2]
	cli(t, witness, "join", nodes[0].ClusterAddress().String(), "--token", token)
	serve(t, l)
	declare(t, l, "fullnat", false)

	powerOff(t, nodes[0])
	powerOff(t, nodes[1])
	waitAlone(t, witness)
	recoverOn(t, witness, nodes[0].Name(), nodes[1].Name())
	if m := status(t, witness).Master("default"); m != "" {
		t.Errorf("%s is master", m)
	}
	powerOn(t, nodes[0])
	wipe(t, nodes[0])
	join(t, nodes[0], witness)
	if m := master(t, l, ""); m != nodes[0] {
		t.Errorf("%s is master", m.Name())
	}
	waitOnlyHolder(t, releaseTime, l, nodes[0].Name(), lab.ServiceVIP())
	steady(t, connect(t, l, 10))
}

// A machine that fails in the middle of a recovery has the old group or the new
// one when it comes back, and the operator's way on is the same.
func TestARecoveryThatIsCutShortCanBeFinished(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 2, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", false)
	lost := master(t, l, "")
	last := others(l, lost)[0]
	powerOff(t, lost)
	waitAlone(t, last)

	said := make(chan error, 1)
	go func() {
		_, err := last.CLI(context.WithoutCancel(t.Context()), "recover", "--i-have-fenced", lost.Name())
		said <- err
	}()
	eventually(t, 15*time.Second, "the recovery to begin", func(context.Context) error {
		_, err := os.Stat(filepath.Join(last.DataDir(), "recovery.json"))
		return err
	})
	if err := last.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := <-said; err == nil {
		t.Error("the command says that it is done")
	}
	if err := errors.Join(last.Start(within(t, 5*time.Second)), last.WaitUp(within(t, 10*time.Second))); err != nil {
		t.Fatal(err)
	}
	// The old group is found by a command that works; the new one says that it leads.
	_, err := last.CLI(within(t, 30*time.Second), "recover", "--i-have-fenced", lost.Name())
	t.Log("again:", err)
	if err != nil && !strings.Contains(err.Error(), "has a leader") && !strings.Contains(err.Error(), "is no member") {
		t.Error(err)
	}
	if m := master(t, l, lost.Name()); m != last {
		t.Errorf("%s is master", m.Name())
	}
	if s := status(t, last); len(s.Nodes) != 1 || !s.Cluster.Quorum {
		t.Errorf("%+v", s)
	}
	if without, _ := withoutNote(t, last); !slices.Equal(without, []string{lost.Name()}) {
		t.Errorf("the status names %v", without)
	}
	if _, err := os.Stat(filepath.Join(last.DataDir(), "recovery.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note of the recovery is still there: %v", err)
	}
	steady(t, connect(t, l, 10))
}
