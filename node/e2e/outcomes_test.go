package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/lab/impair"
)

// What docs/failover.md says of each kind of failure, where a lab can make it.

// cables are a node's, ready to be hurt.
type cables map[string]*impair.Port

func cablesOf(t testing.TB, h *lab.Host) cables {
	t.Helper()
	out := cables{}
	for _, i := range h.Interfaces() {
		do, name, err := h.Cable(i)
		if err != nil {
			t.Fatal(err)
		}
		p, err := impair.Open(impair.Config{Do: do, Interface: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() }) // with the host its cable may be gone
		out[i] = p
	}
	return out
}

func (c cables) set(t testing.TB, iface string, r impair.Rules) {
	t.Helper()
	if err := c[iface].Set(r); err != nil {
		t.Fatal(err)
	}
}

func (c cables) heal(t testing.TB) {
	t.Helper()
	for i := range c {
		c.set(t, i, impair.Rules{})
	}
}

// everything that goes one way is lost.
func everything() []impair.Rule { return []impair.Rule{{Drop: 1}} }

// A wire may fail without a signal, and in one direction only. The others find it by their echoes.
func TestAMasterWhoseWireFailsSilentlyIsReplaced(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 100)
	probeOften(t, l)
	wires := map[*lab.Node]cables{}
	for _, n := range l.Nodes() {
		wires[n] = cablesOf(t, n.Host)
	}
	for _, tc := range []struct {
		name   string
		ifaces []string
		rules  impair.Rules
		causes []string
	}{
		{"the wire to the endpoints", []string{"eth2"}, impair.Rules{FromHost: everything(), ToHost: everything()}, []string{"cut_off"}},
		{"what it sends to the endpoints", []string{"eth2"}, impair.Rules{FromHost: everything()}, []string{"cut_off"}},
		{"what it gets from the endpoints", []string{"eth2"}, impair.Rules{ToHost: everything()}, []string{"cut_off"}},
		// Its daemon is heard for a while, so it lives, and no link of its is of any use.
		{"what it gets on all wires", []string{"eth1", "eth2"}, impair.Rules{ToHost: everything()}, []string{"cut_off", "lost"}},
		{"what it sends on all wires", []string{"eth1", "eth2"}, impair.Rules{FromHost: everything()}, []string{"lost"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steady(t, clients)
			old := master(t, l, "")
			waitSameFlows(t, l.Nodes(), 100)
			late := stalls(t)
			w := clients.Window()
			for _, i := range tc.ifaces {
				wires[old].set(t, i, tc.rules)
			}
			next := masterBy(t, others(l, old), old)
			progressed(t, w, oneLinkGap, late)
			f := timelineOn(t, next, others(l, old))
			inOrder(t, f, 5000, "detected", "confirmed", "committed", "announced")
			if !slices.Contains(tc.causes, f.Cause) {
				t.Errorf("%s moved by %q, want one of %q", old.Name(), f.Cause, tc.causes)
			}
			if len(tc.ifaces) == 1 {
				waitEvent(t, next, "node", old.Name()+" is cut off on eth2")
				expectWarning(t, next, old.Name()+" is cut off on eth2")
			}
			w = clients.Window()
			wires[old].heal(t)
			returned(t, l, w, next, late)
		})
	}
	expectNoDeaths(t, l)
}

// masterBy is master, asked of these nodes only.
func masterBy(t testing.TB, ask []*lab.Node, not *lab.Node) *lab.Node {
	t.Helper()
	return masterWhile(t, ask, not, func() {})
}

// masterWhile is masterBy, and does something again and again until there is another master.
func masterWhile(t testing.TB, ask []*lab.Node, not *lab.Node, what func()) *lab.Node {
	t.Helper()
	var found string
	eventually(t, 30*time.Second, "a master other than "+not.Name(), func(ctx context.Context) error {
		found = ""
		for _, n := range ask {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			m := s.Master("default")
			if m == "" || m == not.Name() || found != "" && m != found {
				what()
				return fmt.Errorf("%s names %q", n.Name(), m)
			}
			found = m
		}
		return nil
	})
	for _, n := range ask {
		if n.Name() == found {
			return n
		}
	}
	t.Fatalf("%s is none of those asked", found)
	return nil
}

// timelineOn is timeline, asked of these nodes only.
func timelineOn(t testing.TB, of *lab.Node, ask []*lab.Node) lab.Failover {
	t.Helper()
	e := epoch(t, of)
	var out lab.Failover
	for _, n := range ask {
		eventually(t, 10*time.Second, n.Name()+" to show the timeline", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			f, ok := s.Failover("default", e)
			if !ok {
				return fmt.Errorf("epoch %d is not in %+v", e, s.Failovers)
			}
			out = f
			return nil
		})
	}
	return out
}

// expectWarning waits until a node warns with these words.
func expectWarning(t testing.TB, n *lab.Node, words string) {
	t.Helper()
	eventually(t, 10*time.Second, n.Name()+" to warn: "+words, func(ctx context.Context) error {
		var s struct{ Warnings []string }
		if err := get(ctx, n, "/v1/status", &s); err != nil {
			return err
		}
		if !strings.Contains(strings.Join(s.Warnings, "\n"), words) {
			return fmt.Errorf("it warns of %q", s.Warnings)
		}
		return nil
	})
}

// Nobody is dead, nothing moves: two that do not hear each other are both heard by the third.
func TestACutBetweenTwoNodesMovesNothing(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 50)
	steady(t, clients)
	m := master(t, l, "")
	wires := cablesOf(t, m.Host)
	before := epoch(t, m)
	for _, other := range others(l, m) {
		t.Run(m.Name()+" and "+other.Name(), func(t *testing.T) {
			third := others(l, m, other)[0]
			t.Logf("%s leads, %s is master", leader(t, l).Name(), m.Name())
			late := stalls(t)
			w := clients.Window()
			for i, iface := range []string{"eth1", "eth2"} {
				rule := impair.Rule{Peer: other.MACs()[i], Drop: 1}
				wires.set(t, iface, impair.Rules{FromHost: []impair.Rule{rule}, ToHost: []impair.Rule{rule}})
			}
			expectWarning(t, m, "this node reaches "+other.Name()+" on no path")
			eventually(t, 20*time.Second, "the replication between the two to be down", func(ctx context.Context) error {
				return replicationDown(ctx, m, other.Name())
			})
			pass(t, 3*time.Second)
			for _, n := range l.Nodes() {
				s := status(t, n)
				for _, name := range names(l) {
					if node, _ := s.Node(name); !node.Alive {
						t.Errorf("%s is dead to %s", name, n.Name())
					}
				}
				eventually(t, 10*time.Second, third.Name()+", which all hear, to lead", func(ctx context.Context) error {
					s, err := n.Status(ctx)
					if err == nil && s.Cluster.Leader != third.Name() {
						err = fmt.Errorf("%s leads as %s sees it", s.Cluster.Leader, n.Name())
					}
					return err
				})
			}
			if after := epoch(t, m); after != before {
				t.Errorf("epoch %d became %d", before, after)
			}
			progressed(t, w, restartGap, late)
			wires.heal(t)
			waitHealthy(t, l)
		})
	}
}

func replicationDown(ctx context.Context, n *lab.Node, peer string) error {
	var s struct {
		Replication []struct{ Peer, State string }
	}
	if err := n.Get(ctx, "/v1/status", &s); err != nil {
		return err
	}
	for _, r := range s.Replication {
		if r.Peer == peer && r.State == "down" {
			return nil
		}
	}
	return fmt.Errorf("%+v", s.Replication)
}

// A data plane that is gone while the machine lives: its kernel refuses the echoes.
func TestAMasterWithoutItsProgramsIsReplaced(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	prober := probe(t, l)
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "and its daemon mends it", true: "nor its daemon"}[killed], func(t *testing.T) {
			old := master(t, l, "")
			if killed {
				if err := old.Kill(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			detach(t, old)
			// A daemon that looks just then has mended it before anybody missed an echo.
			next := masterWhile(t, others(l, old), old, func() {
				if len(links(t, old)) > 0 {
					detach(t, old)
				}
			})
			t.Logf("%s took over after at most %s", next.Name(), time.Since(began))
			if err := prober.Succeeding(within(t, 10*time.Second), 5); err != nil {
				t.Error(err)
			}
			if f := timelineOn(t, next, others(l, old)); f.Cause != "cut_off" && f.Cause != "report" {
				t.Errorf("moved by %q", f.Cause)
			}
			if killed {
				if err := old.Start(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			waitHealthy(t, l) // attached again
		})
	}
}

// links are the pins by which a node's programs stay on its interfaces.
func links(t testing.TB, n *lab.Node) []string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(n.PinDir(), "links", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return pins
}

// detach takes the programs off a node's interfaces, as a foreign hand may.
func detach(t testing.TB, n *lab.Node) {
	t.Helper()
	pins := links(t, n)
	if len(pins) == 0 {
		t.Fatalf("no pinned links in %s", n.PinDir())
	}
	for _, p := range pins {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

// Two of five machines die within one detection time, master and successor.
func TestTwoDeathsAtOnceAreFoundTogether(t *testing.T) {
	l := newLab(t, lab.Config{Topology: lab.TwoLeg, Nodes: 5, Witnesses: 2, Clients: 1, Endpoints: 2})
	first := l.Nodes()[0]
	cli(t, first, "init")
	for _, n := range l.Nodes()[1:3] {
		join(t, n, first)
	}
	for _, n := range l.Nodes()[3:] {
		cli(t, n, "join", first.ClusterAddress().String(), "--token", newToken(t, first, "--role", "witness"))
	}
	waitHealthy(t, l)
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 100)
	steady(t, clients)
	waitSameFlows(t, l.Nodes()[:3], 100)
	old := master(t, l, "")
	heir := heirOf(t, l, old)
	pass(t, newcomer)
	late := stalls(t)
	w := clients.Window()
	var g errgroup.Group
	for _, n := range []*lab.Node{old, heir} {
		g.Go(func() error { return n.PowerOff(context.Background()) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	alive := others(l, old, heir)
	var last string
	eventually(t, 20*time.Second, "the third to be master", func(ctx context.Context) error {
		s, err := alive[0].Status(ctx)
		if err != nil {
			return err
		}
		if last = s.Master("default"); last == "" || last == old.Name() || last == heir.Name() {
			return fmt.Errorf("it is %q", last)
		}
		return nil
	})
	f := timelineOn(t, l.Node(last), alive)
	inOrder(t, f, 5000, "detected", "confirmed", "committed", "announced")
	if f.Cause != "lost" {
		t.Errorf("found by %q, want by echoes", f.Cause)
	}
	progressed(t, w, failoverGap, late)
}

// heirOf is who comes after m.
func heirOf(t testing.TB, l *lab.Lab, m *lab.Node) *lab.Node {
	t.Helper()
	var s struct {
		Instances []struct {
			Name       string
			Succession []string
		}
	}
	if err := m.Get(within(t, 5*time.Second), "/v1/status", &s); err != nil {
		t.Fatal(err)
	}
	for _, in := range s.Instances {
		if in.Name == "default" && len(in.Succession) > 1 {
			return l.Node(in.Succession[1])
		}
	}
	t.Fatalf("nobody follows %s: %+v", m.Name(), s.Instances)
	return nil
}
