package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// timeline waits until every running node shows the timeline of the mastership
// that instance default has now, and returns it.
func timeline(t testing.TB, l *lab.Lab, of *lab.Node) lab.Failover {
	t.Helper()
	epoch := epoch(t, of)
	var out lab.Failover
	for _, n := range l.Nodes() {
		if !n.Powered() {
			continue
		}
		eventually(t, 10*time.Second, n.Name()+" to show the timeline", func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			f, ok := s.Failover("default", epoch)
			if !ok {
				return fmt.Errorf("epoch %d is not in %+v", epoch, s.Failovers)
			}
			out = f
			return nil
		})
	}
	return out
}

// inOrder checks that the steps named are known and that each came after the
// one before.
func inOrder(t testing.TB, f lab.Failover, most float64, steps ...string) {
	t.Helper()
	t.Logf("%s: %s to %s: %s", f.Cause, f.From, f.To, f.Timeline())
	last := 0.0
	for _, step := range steps {
		ms, known := f.Parts[step]
		if !known {
			t.Errorf("%s is not known: %v", step, f.Parts)
		}
		// Two nodes' durations are added: they may be a trip through the network apart.
		if ms < last-5 || ms > most {
			t.Errorf("%s at %.1f ms, the step before at %.1f: %v", step, ms, last, f.Parts)
		}
		last = ms
	}
}

func TestEachFailoverLeavesItsTimelineOnEveryNode(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 50)
	steady(t, clients)
	victim := master(t, l, "")
	var other *lab.Node
	for _, n := range l.Nodes() {
		if n != victim {
			other = n
		}
	}

	cli(t, victim, "instance", "move", "default", "--to", other.Name())
	master(t, l, victim.Name())
	f := timeline(t, l, other)
	if f.Cause != "move" || f.From != victim.Name() || f.To != other.Name() {
		t.Errorf("%+v", f)
	}
	inOrder(t, f, 2000, "committed", "announced", "first_packet")
	pass(t, 2*time.Second)

	if err := other.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := master(t, l, other.Name())
	f = timeline(t, l, next)
	if f.Cause != "lost" || f.From != other.Name() || f.To != next.Name() {
		t.Errorf("%+v", f)
	}
	inOrder(t, f, 3000, "detected", "confirmed", "committed", "announced", "first_packet")
	if text := cli(t, next, "events"); !strings.Contains(text, fmt.Sprintf("default moved from %s to %s in ", other.Name(), next.Name())) {
		t.Errorf("events:\n%s", text)
	}
	if text := cli(t, next, "status"); !strings.Contains(text, "default moved from "+other.Name()) {
		t.Errorf("status:\n%s", text)
	}
}
