package e2e

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
	"pontoon/internal/lab"
)

const (
	tcpSYN = 2
	tcpACK = 16
)

// step is one segment of made-up handshakes: from the client, or from the endpoint.
type step struct {
	back  bool
	flags byte
}

// walk takes made-up connections through steps on n, one after the other.
func (f *flowMaker) walk(n *lab.Node, connections iter.Seq[int], steps ...step) error {
	vip := netip.AddrPortFrom(lab.ServiceVIP(), bulkPort)
	return n.Do(func() error {
		front, err := bpftest.NewInjector(n.PinDir(), "eth1")
		if err != nil {
			return err
		}
		defer front.Close()
		back, err := bpftest.NewInjector(n.PinDir(), "eth2")
		if err != nil {
			return err
		}
		defer back.Close()
		for i := range connections {
			client := f.client(i)
			for _, s := range steps {
				way, src, dst := front, client, vip
				if s.back {
					way, src, dst = back, f.endpoint, client
				}
				verdict, err := way.TCP(src, dst, s.flags)
				if err != nil {
					return err
				}
				if verdict == tcDrop {
					return fmt.Errorf("%s dropped a packet from %s to %s", n.Name(), src, dst)
				}
			}
		}
		return nil
	})
}

// between are the connections first to last-1.
func between(first, last int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := first; i < last && yield(i); i++ {
		}
	}
}

// halfOpen is how many handshakes under way n knows of.
func halfOpen(ctx context.Context, n *lab.Node) (int, error) {
	var s struct {
		Flows struct {
			HalfOpen int `json:"half_open"`
		} `json:"flows"`
	}
	err := get(ctx, n, "/v1/status", &s)
	return s.Flows.HalfOpen, err
}

// Of a service that replicates all, handshakes that are under way when the master dies go on at the next: some of
// the clients have been answered by then, and the endpoint's answer to the others comes there.
func TestHandshakesUnderWayOutliveTheMaster(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	flows := declareBulk(t, l)
	m := l.Node(status(t, l.Nodes()[0]).Master("default"))
	cli(t, m, "service", "update", "bulk", "--replicate", "all")
	waitApplied(t, l)

	const answered, all = 20, 40
	began := time.Now()
	if err := flows.walk(m, between(0, answered), step{false, tcpSYN}, step{true, tcpSYN | tcpACK}); err != nil {
		t.Fatal(err)
	}
	if err := flows.walk(m, between(answered, all), step{false, tcpSYN}); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		eventually(t, 8*time.Second, "the handshakes to be known to "+n.Name(), func(ctx context.Context) error {
			known, err := halfOpen(ctx, n)
			if err == nil && known < all {
				err = fmt.Errorf("%d of %d", known, all)
			}
			return err
		})
	}
	if err := m.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := master(t, l, m.Name())
	if err := flows.walk(next, between(answered, all), step{true, tcpSYN | tcpACK}); err != nil {
		t.Fatal(err)
	}
	if err := flows.walk(next, between(0, all), step{false, tcpACK}); err != nil {
		t.Fatal(err)
	}
	t.Logf("finished %s after they were begun", time.Since(began).Round(time.Millisecond))
	held, err := bpftest.Established(next.PinDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(held) != 2*all {
		t.Errorf("%d halves of %d connections are established at %s", len(held), all, next.Name())
	}
}
