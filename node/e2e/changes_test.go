package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// pinned is a connection whose endpoint is known.
type pinned struct {
	net.Conn
	endpoint netip.Addr
}

// connectPinned opens count connections through the service web and asks the
// master where they went.
func connectPinned(t testing.TB, l *lab.Lab, count int) []pinned {
	t.Helper()
	out := make([]pinned, count)
	for i := range out {
		c, err := l.Clients()[0].Dial(within(t, 10*time.Second), webVIP)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out[i].Conn = c
		expectTalking(t, c)
	}
	var flows []struct{ Client, Endpoint netip.AddrPort }
	listed := cli(t, master(t, l, ""), "conntrack", "list", "--service", "web", "-o", "json")
	if err := json.Unmarshal([]byte(listed), &flows); err != nil {
		t.Fatal(err)
	}
	for i := range out {
		for _, f := range flows {
			if f.Client.String() == out[i].LocalAddr().String() {
				out[i].endpoint = f.Endpoint.Addr()
			}
		}
		if !out[i].endpoint.IsValid() {
			t.Fatalf("%s is not among %s", out[i].LocalAddr(), listed)
		}
	}
	return out
}

// expectReset waits until the connection is reset.
func expectReset(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v, want a reset", c.LocalAddr(), err)
	}
}

// expectTalking demands that the connection carries data to an echo and back.
func expectTalking(t testing.TB, c net.Conn) {
	t.Helper()
	word, got := []byte("still there?"), make([]byte, 12)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Write(word)
	if err == nil {
		_, err = io.ReadFull(c, got)
	}
	if err != nil || !bytes.Equal(word, got) {
		t.Errorf("%s: %q, %v", c.LocalAddr(), got, err)
	}
}

// echoStreams sends back what comes to the port of the service web, on every
// endpoint.
func echoStreams(t testing.TB, l *lab.Lab) {
	t.Helper()
	for _, ep := range l.Endpoints() {
		ln, err := ep.Listen(netip.AddrPortFrom(ep.Addr(), webPort))
		if err != nil {
			t.Fatal(err)
		}
		background(t, "echo on "+ep.Name(), func(ctx context.Context) error {
			var g errgroup.Group
			for {
				stop := context.AfterFunc(ctx, func() { ln.Close() })
				c, err := ln.Accept()
				stop()
				if errors.Is(err, net.ErrClosed) {
					return g.Wait()
				}
				if err != nil {
					return err
				}
				g.Go(func() error {
					stop := context.AfterFunc(ctx, func() { c.Close() })
					defer stop()
					_, _ = io.Copy(c, c) // ends with a reset as the test wants it
					return nil
				})
			}
		})
	}
}

// A silent client of an endpoint that is taken away is told so, and nobody
// else notices.
func TestClientsOfARemovedEndpointAreToldAndOthersStay(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	echoStreams(t, l)
	declare(t, l, "fullnat", true)
	gone, stays := l.Endpoints()[0], l.Endpoints()[1]
	conns := connectPinned(t, l, 6)
	n := l.Nodes()[1]
	cli(t, n, "endpoint", "drain", "web", netip.AddrPortFrom(gone.Addr(), webPort).String())
	waitApplied(t, l)
	for _, c := range conns {
		expectTalking(t, c)
	}
	cli(t, n, "service", "update", "web", "--endpoint", netip.AddrPortFrom(stays.Addr(), webPort).String())
	told := 0
	for _, c := range conns {
		if c.endpoint == gone.Addr() {
			expectReset(t, c)
			told++
			continue
		}
		expectTalking(t, c)
	}
	if told != 3 {
		t.Errorf("%d of 6 connections went to one of two endpoints", told)
	}
}

// A drained endpoint keeps its connections until its deadline.
func TestDrainedEndpointKeepsItsConnectionsUntilTheDeadline(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 1})
	echoStreams(t, l)
	declare(t, l, "dnat", true)
	c := connectPinned(t, l, 1)[0]
	const grace = 4 * time.Second
	from := time.Now()
	cli(t, l.Nodes()[0], "endpoint", "drain", "web", netip.AddrPortFrom(c.endpoint, webPort).String(), "--timeout", grace.String())
	for time.Since(from) < grace-time.Second {
		expectTalking(t, c)
		if t.Failed() {
			return
		}
	}
	expectReset(t, c)
	if d := time.Since(from); d < grace {
		t.Errorf("reset after %s, before the deadline", d)
	}
}

// Datagrams are answered in both families and across them, whole and in
// fragments.
func TestDatagramsOfEveryFamilyAndSizeAreAnswered(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	n := l.Nodes()[0]
	kinds := twoLegKinds()
	for _, f := range lab.Families() {
		cli(t, n, "vip", "create", f.ServiceVIP().String())
		cli(t, n, "vip", "create", f.GatewayVIP().String(), "--kind", "gateway")
	}
	for i, k := range kinds {
		args := []string{"service", "create", k.name, "--vip", k.vip.ServiceVIP().String(), "--port", fmt.Sprint(port(i)), "--protocol", "udp"}
		for _, ep := range l.Endpoints() {
			at := netip.AddrPortFrom(ep.AddrIn(k.ep), port(i))
			args = append(args, "--endpoint", at.String())
			echoDatagrams(t, ep, at)
		}
		cli(t, n, append(args, k.flags...)...)
	}
	waitApplied(t, l)
	for i, k := range kinds {
		c := dialUDP(t, l.Clients()[0], netip.AddrPortFrom(k.vip.ServiceVIP(), port(i)))
		sizes := []int{1, 1400, 4000, 20000}
		if k.vip != k.ep {
			sizes = sizes[:2] // a fragment that fills an IPv4 packet does not fit into an IPv6 one
		}
		for _, size := range sizes {
			expectEcho(t, k.name, c, size)
		}
	}
}

// echoDatagrams sends every datagram back.
func echoDatagrams(t testing.TB, h *lab.Host, at netip.AddrPort) {
	t.Helper()
	c, err := h.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	background(t, "datagram echo on "+at.String(), func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		defer stop()
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from) // its own gateway may be away for a moment: datagrams get lost
		}
	})
}

func dialUDP(t testing.TB, h *lab.Host, to netip.AddrPort) net.Conn {
	t.Helper()
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = net.Dial("udp", to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// expectEcho sends a datagram until it comes back: one may be lost on the way
// to a neighbour that is not known yet.
func expectEcho(t testing.TB, what string, c net.Conn, size int) {
	t.Helper()
	sent, got := make([]byte, size), make([]byte, 65536)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	for range 5 {
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(got)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil || string(got[:n]) != string(sent) {
			t.Errorf("%s: %d of %d bytes came back, %v", what, n, size, err)
		}
		return
	}
	t.Errorf("%s: a datagram of %d bytes was never answered", what, size)
}
