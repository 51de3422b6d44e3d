package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// way is one line of `pontoon bfd list`.
type way struct {
	Peer, Kind, Address, Interface, State, Why, Error string

	IntervalMS  float64 `json:"interval_ms"`
	Multiplier  int     `json:"multiplier"`
	DetectionMS float64 `json:"detection_ms"`
}

// ways is what a node watches.
func ways(ctx context.Context, n *lab.Node) ([]way, error) {
	out, err := n.CLI(ctx, "bfd", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []way
	return list, json.Unmarshal([]byte(out), &list)
}

// waitWays waits until n watches exactly these, each "peer kind interface state", and returns them.
func waitWays(t testing.TB, n *lab.Node, want ...string) []way {
	t.Helper()
	slices.Sort(want)
	var list []way
	eventually(t, 20*time.Second, n.Name()+" to watch the others", func(ctx context.Context) (err error) {
		if list, err = ways(ctx, n); err != nil {
			return err
		}
		var have []string
		for _, w := range list {
			have = append(have, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", w.Peer, w.Kind, w.Interface, w.State)))
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			return fmt.Errorf("it watches %q, want %q", have, want)
		}
		return nil
	})
	return list
}

// newWitnessCluster is two load balancers and a witness.
func newWitnessCluster(t testing.TB, cfg lab.Config) (l *lab.Lab, witness *lab.Node) {
	t.Helper()
	cfg.Nodes, cfg.Witnesses = 3, 1
	l = newLab(t, cfg)
	first, witness := l.Nodes()[0], l.Nodes()[2]
	cli(t, first, "init")
	join(t, l.Nodes()[1], first)
	cli(t, witness, "join", first.ClusterAddress().String(), "--token", newToken(t, first, "--role", "witness"))
	waitHealthy(t, l)
	return l, witness
}

// leader is who leads, as a node that runs says.
func leader(t testing.TB, l *lab.Lab) *lab.Node {
	t.Helper()
	var found *lab.Node
	eventually(t, 20*time.Second, "a leader", func(ctx context.Context) error {
		for _, n := range l.Nodes() {
			if !n.Powered() {
				continue
			}
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if found = l.Node(s.Cluster.Leader); found == nil || !found.Powered() {
				return fmt.Errorf("%s names %q", n.Name(), s.Cluster.Leader)
			}
		}
		return nil
	})
	return found
}

// newcomer is how long a node that has just started calls nobody lost, and a little more: of three nodes the other one alone is no
// majority meanwhile.
const newcomer = 2500 * time.Millisecond

// makeLead restarts the daemons of others that lead until want does.
func makeLead(t testing.TB, l *lab.Lab, want *lab.Node) {
	t.Helper()
	for try := range 8 {
		now := leader(t, l)
		if now == want {
			if try > 0 {
				pass(t, newcomer)
			}
			return
		}
		if err := now.Kill(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "another leader than "+now.Name(), func(ctx context.Context) error {
			s, err := want.Status(ctx)
			if err == nil && (s.Cluster.Leader == now.Name() || s.Cluster.Leader == "") {
				err = fmt.Errorf("%q leads", s.Cluster.Leader)
			}
			return err
		})
		if err := now.Start(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitHealthy(t, l)
	}
	t.Fatalf("%s does not come to lead", want.Name())
}

// echoTime is within what a death is known to a majority that sees it by echoes: three of them are 60 ms,
// and a busy machine may need several times as long; where the leader dies as well, its heir is elected first, which was seen to
// take 0.6 s. That it was found by echoes and not by gossip is told by the cause.
const echoTime = 2 * time.Second

func TestAWitnessWatchesAndIsWatched(t *testing.T) {
	t.Parallel()
	l, witness := newWitnessCluster(t, lab.Config{Topology: lab.TwoLeg})
	list := waitWays(t, l.Nodes()[0],
		"lb2 echo eth1 up", "lb2 echo eth2 up", "lb2 async eth1 up", "lb2 async eth2 up", "lb3 async eth1 up", "lb3 async eth2 up")
	for _, w := range list {
		every, detects := 20.0, 60.0
		if w.Kind == "async" {
			every, detects = 100, 300
		}
		if w.IntervalMS != every || w.Multiplier != 3 || w.DetectionMS != detects {
			t.Errorf("%+v: want 3 times %g ms", w, every)
		}
	}
	waitWays(t, witness, "lb1 echo eth1 up", "lb1 echo eth2 up", "lb1 async eth1 up", "lb1 async eth2 up",
		"lb2 echo eth1 up", "lb2 echo eth2 up", "lb2 async eth1 up", "lb2 async eth2 up")

	// A daemon that stops says so, and is not taken for one that has failed.
	if err := witness.Terminate(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, w := range waitWays(t, l.Nodes()[0], "lb2 echo eth1 up", "lb2 echo eth2 up", "lb2 async eth1 up", "lb2 async eth2 up",
		"lb3 async eth1 down", "lb3 async eth2 down") {
		if w.Peer == "lb3" && w.Why != "stopped" {
			t.Errorf("%+v: want it to be known as stopped", w)
		}
	}

	// Another program on BFD's port costs the sessions and nothing else.
	holder, err := witness.ListenUDP(netip.MustParseAddrPort("0.0.0.0:3784"))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if err := witness.Start(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	expectWarning(t, witness, "BFD sessions cannot be: ")
	for _, w := range waitWays(t, witness, "lb1 echo eth1 up", "lb1 echo eth2 up", "lb1 async eth1 down", "lb1 async eth2 down",
		"lb2 echo eth1 up", "lb2 echo eth2 up", "lb2 async eth1 down", "lb2 async eth2 down") {
		if w.Kind == "async" && !strings.Contains(w.Error, "in use") {
			t.Errorf("%+v: want it to say that the port is in use", w)
		}
	}
}

func TestTwoAndAWitnessFindADeadMasterWithinTheEchoTime(t *testing.T) {
	l, witness := newWitnessCluster(t, lab.Config{Topology: lab.TwoLeg, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 100)
	balancers := l.Nodes()[:2]
	other := func(n *lab.Node) *lab.Node {
		if n == balancers[0] {
			return balancers[1]
		}
		return balancers[0]
	}
	for _, tc := range []struct {
		name   string
		leader func(m *lab.Node) *lab.Node
	}{
		{"the witness leads", func(*lab.Node) *lab.Node { return witness }},
		{"the backup leads", other},
		{"the master leads", func(m *lab.Node) *lab.Node { return m }},
	} {
		t.Run("power loss of the master, "+tc.name, func(t *testing.T) {
			old := master(t, l, "")
			makeLead(t, l, tc.leader(old))
			steady(t, clients)
			waitSameFlows(t, balancers, 100)
			late := stalls(t)
			w := clients.Window()
			if err := old.PowerOff(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			next := takenOver(t, l, w, old, failoverGap, late)
			f := timeline(t, l, next)
			inOrder(t, f, 3000, "detected", "confirmed", "committed", "announced")
			if f.Cause != "lost" {
				t.Errorf("found by %q, want by echoes", f.Cause)
			}
			if by := time.Duration(f.Parts["confirmed"] * float64(time.Millisecond)); by > echoTime+late() {
				t.Errorf("a majority knew after %s, want %s", by, echoTime)
			}
			if err := old.PowerOn(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			waitHealthy(t, l)
			pass(t, newcomer)
		})
	}
	for _, tc := range []struct {
		name   string
		victim func() *lab.Node
	}{
		{"the backup", func() *lab.Node { return other(master(t, l, "")) }},
		{"the witness", func() *lab.Node { return witness }},
		{"the witness that leads", func() *lab.Node { makeLead(t, l, witness); return witness }},
	} {
		t.Run("power loss of "+tc.name, func(t *testing.T) {
			victim, m := tc.victim(), master(t, l, "")
			steady(t, clients)
			before := epoch(t, m)
			late := stalls(t)
			w := clients.Window()
			if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, victim.Name()+" to be dead", func(ctx context.Context) error {
				s, err := m.Status(ctx)
				if err != nil {
					return err
				}
				if n, _ := s.Node(victim.Name()); n.Alive || s.Cluster.Leader == "" || s.Cluster.Leader == victim.Name() {
					return fmt.Errorf("%+v, %q leads", n, s.Cluster.Leader)
				}
				return nil
			})
			pass(t, time.Second)
			progressed(t, w, restartGap, late)
			if after := epoch(t, m); after != before {
				t.Errorf("epoch %d became %d: nothing had to move", before, after)
			}
			if err := victim.PowerOn(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			waitHealthy(t, l)
		})
	}
}
