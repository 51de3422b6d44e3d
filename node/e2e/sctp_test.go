package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

const sctpPort = 8132

// sctpEnd is an association as its endpoint saw it, told when it is over.
type sctpEnd struct {
	host string
	peer netip.AddrPort
	err  error // nil after a SHUTDOWN
}

// sctpEcho answers each association on the hosts with what it says, and
// reports how each has ended.
func sctpEcho(t testing.TB, hosts ...*lab.Host) <-chan sctpEnd {
	t.Helper()
	ends := make(chan sctpEnd, 64)
	for _, h := range hosts {
		ln, err := listenSCTP(h, sctpPort)
		if err != nil {
			t.Fatal(err)
		}
		background(t, "sctp echo on "+h.Name(), func(ctx context.Context) error {
			stop := context.AfterFunc(ctx, func() { ln.Close() })
			defer stop()
			var g errgroup.Group
			for {
				c, err := ln.accept()
				if ctx.Err() != nil {
					return g.Wait()
				} else if err != nil {
					return err
				}
				g.Go(func() error {
					stop := context.AfterFunc(ctx, func() { c.Close() })
					defer stop()
					defer c.Close()
					// A read and a write each are a message's part at most.
					_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 8192))
					ends <- sctpEnd{host: h.Name(), peer: c.peer, err: err}
					return nil
				})
			}
		})
	}
	return ends
}

// exchange says something of that many bytes in messages and hears it back.
func (c *sctpConn) exchange(size int, patience time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	said := bytes.Repeat([]byte("pontoon carries sctp. "), size/22+1)[:size]
	for part := range slicesOf(said, 8000) {
		if _, err := c.Write(part); err != nil {
			return fmt.Errorf("say: %w", err)
		}
		heard := make([]byte, len(part))
		if _, err := io.ReadFull(c, heard); err != nil {
			return fmt.Errorf("hear: %w", err)
		}
		if !bytes.Equal(heard, part) {
			return fmt.Errorf("heard something else than was said in %d bytes", len(part))
		}
	}
	return nil
}

// slicesOf cuts b into messages.
func slicesOf(b []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(size, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// talkSCTP exchanges messages smaller than a packet, as large as one, and much
// larger.
func talkSCTP(t testing.TB, c *sctpConn) {
	t.Helper()
	for _, size := range []int{10, 1452, 40000} {
		if err := c.exchange(size, roottest.Patient(10*time.Second)); err != nil {
			t.Fatalf("%s to %s, %d bytes: %v", c.local, c.peer, size, err)
		}
	}
}

// ended waits until an endpoint has seen the association's end.
func ended(t testing.TB, ends <-chan sctpEnd) sctpEnd {
	t.Helper()
	select {
	case e := <-ends:
		return e
	case <-within(t, 20*time.Second).Done():
		t.Fatal("no endpoint has seen the end of an association")
		return sctpEnd{}
	}
}

// throughAllEnds opens an association, talks, and ends it once by SHUTDOWN and
// once by ABORT. The endpoint must have seen each end, and sees as the client.
func throughAllEnds(t testing.TB, from *lab.Host, to netip.AddrPort, ends <-chan sctpEnd, sees netip.Addr) {
	t.Helper()
	for _, way := range []struct {
		name  string
		close func(*sctpConn) error
		want  error
	}{
		{"shutdown", func(c *sctpConn) error { return c.Close() }, nil},
		{"abort", (*sctpConn).abort, syscall.ECONNRESET},
	} {
		c := associate(t, from, to)
		talkSCTP(t, c)
		if err := way.close(c); err != nil {
			t.Fatalf("%s: %v", way.name, err)
		}
		e := ended(t, ends)
		if !errors.Is(e.err, way.want) {
			t.Errorf("after a %s %s saw: %v, want %v", way.name, e.host, e.err, way.want)
		}
		if e.peer.Addr() != sees {
			t.Errorf("%s talked with %s, want an association from %s", e.host, e.peer, sees)
		}
	}
}

// This one proves the kernel and the test's own tools; no load balancer is in it.
func TestSCTPAssociationBetweenTwoHosts(t *testing.T) {
	needSCTP(t)
	for _, sums := range []string{"offloaded", "computed"} {
		t.Run(sums, func(t *testing.T) {
			l := newLab(t, lab.Config{Topology: lab.OneLeg, Clients: 1, Endpoints: 1})
			client, ep := l.Clients()[0], l.Endpoints()[0]
			if sums == "computed" {
				softwareSums(t, client)
				softwareSums(t, ep)
			}
			ends := sctpEcho(t, ep)
			throughAllEnds(t, client, netip.AddrPortFrom(ep.Addr(), sctpPort), ends, client.Addr())
		})
	}
}

// declareSCTP makes a service on a port of the service VIP.
func declareSCTP(t testing.TB, l *lab.Lab, mode string, port uint16) {
	t.Helper()
	n := l.Nodes()[0]
	args := []string{
		"service", "create", "sctp-" + mode, "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(port),
		"--protocol", "sctp", "--mode", mode, "--algorithm", "rr",
	}
	for _, ep := range l.Endpoints() {
		args = append(args, "--endpoint", netip.AddrPortFrom(ep.Addr(), sctpPort).String())
	}
	if _, err := n.CLI(within(t, 30*time.Second), args...); err != nil {
		t.Fatal(err)
	}
	waitApplied(t, l)
}

// newSCTPCluster has three nodes between clients and endpoints that compute
// their checksums.
func newSCTPCluster(t testing.TB) *lab.Lab {
	t.Helper()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	n := l.Nodes()[0]
	cli(t, n, "vip", "create", lab.ServiceVIP().String())
	cli(t, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	for _, h := range append([]*lab.Host{l.Clients()[0]}, l.Endpoints()...) {
		softwareSums(t, h)
	}
	return l
}

func TestSCTPAssociationThroughAService(t *testing.T) {
	needSCTP(t)
	l := newSCTPCluster(t)
	client := l.Clients()[0]
	ends := sctpEcho(t, l.Endpoints()...)
	for i, tc := range []struct {
		mode string
		sees netip.Addr // by the endpoint
	}{
		{"fullnat", lab.ServiceVIP()},
		{"dnat", client.Addr()},
		{"onearm", lab.GatewayVIP()},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			port := uint16(9001 + i)
			declareSCTP(t, l, tc.mode, port)
			throughAllEnds(t, client, netip.AddrPortFrom(lab.ServiceVIP(), port), ends, tc.sees)
		})
	}
}

func TestSCTPAssociationSurvivesTheMastersPowerLoss(t *testing.T) {
	needSCTP(t)
	l := newSCTPCluster(t)
	declareSCTP(t, l, "fullnat", 9001)
	ends := sctpEcho(t, l.Endpoints()...)
	c := associate(t, l.Clients()[0], netip.AddrPortFrom(lab.ServiceVIP(), 9001))
	talkSCTP(t, c)
	waitSameFlows(t, l.Nodes(), 1)
	victim := master(t, l, "")
	if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := master(t, l, victim.Name())
	// The first packet may meet nobody; SCTP repeats it after a second, then two
	// (RFC 9260, section 15).
	if err := c.exchange(1000, roottest.Patient(15*time.Second)); err != nil {
		t.Fatalf("after %s died and %s followed: %v", victim.Name(), next.Name(), err)
	}
	talkSCTP(t, c)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if e := ended(t, ends); e.err != nil {
		t.Errorf("%s saw the end as: %v", e.host, e.err)
	}
}
