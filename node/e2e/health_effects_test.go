package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// The services of checkEffects: what is probed is another port than what clients use, so an endpoint that is found
// dead serves its clients all the same, and they see where their flows are.
const (
	effectsPort = 8300
	aliveProbed = 8399
)

// effect is a service in one protocol and family, of the lab's first two endpoints.
type effect struct {
	name     string
	protocol string
	family   lab.Family
}

func (e effect) target() netip.AddrPort {
	return netip.AddrPortFrom(e.family.ServiceVIP(), effectsPort)
}

func effects() []effect {
	return []effect{
		{"udp4", "udp", lab.IPv4},
		{"udp6", "udp", lab.IPv6},
		{"tcp4", "tcp", lab.IPv4},
		{"tcp6", "tcp", lab.IPv6},
	}
}

// client is a flow through one of them.
type client struct {
	net.Conn
	of  effect
	who string // the endpoint it got at first
}

// call opens a flow, if the service lets it.
func (e effect) call(t testing.TB, l *lab.Lab) (client, error) {
	t.Helper()
	c := client{of: e}
	if e.protocol == "udp" {
		c.Conn = dialUDP(t, l.Clients()[0], e.target())
	} else {
		conn, err := l.Clients()[0].Dial(within(t, 10*time.Second), e.target())
		if err != nil {
			return c, err
		}
		t.Cleanup(func() { conn.Close() })
		c.Conn = conn
	}
	var err error
	c.who, err = c.ask()
	return c, err
}

// ask returns who answers. A datagram may be lost on the way to a neighbour that is not known yet.
func (c client) ask() (who string, err error) {
	buf := make([]byte, 64)
	for range 5 {
		if _, err = c.Write([]byte("who?")); err != nil {
			return "", err
		}
		if err = c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return "", err
		}
		n, err := c.Read(buf)
		if err == nil || c.of.protocol == "tcp" || !errors.Is(err, os.ErrDeadlineExceeded) {
			return string(buf[:n]), err
		}
	}
	return "", errors.New("no answer to five datagrams")
}

// sayWho has a host answer whatever it is sent, in either protocol, with its name.
func sayWho(t testing.TB, h *lab.Host, at netip.AddrPort) {
	t.Helper()
	udp, err := h.ListenUDP(at)
	if err != nil {
		t.Fatal(err)
	}
	background(t, "datagrams at "+at.String(), func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { udp.Close() })()
		buf := make([]byte, 64)
		for {
			_, from, err := udp.ReadFromUDPAddrPort(buf)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				_, _ = udp.WriteToUDPAddrPort([]byte(h.Name()), from) // its loss is the client's to notice
			}
		}
	})
	tcp, err := h.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	background(t, "streams at "+at.String(), func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { tcp.Close() })()
		var conns errgroup.Group
		for {
			c, err := tcp.Accept()
			if err != nil {
				return errors.Join(context.Cause(ctx), conns.Wait())
			}
			conns.Go(func() error {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				buf := make([]byte, 64)
				for {
					if _, err := c.Read(buf); err != nil {
						return nil
					}
					_, _ = io.WriteString(c, h.Name())
				}
			})
		}
	})
}

// checkEffects looks at what becomes of real flows, TCP and UDP, IPv4 and IPv6, as endpoints are found dead.
func checkEffects(t *testing.T, l *lab.Lab, _ []*door) {
	alive := declareEffects(t, l)
	all := effects()
	n := l.Nodes()[1]
	set := func(flags ...string) {
		for _, e := range all {
			cli(t, n, append([]string{"service", "update", e.name}, flags...)...)
		}
		waitApplied(t, l)
	}
	find := func(want ...string) {
		t.Helper()
		for _, e := range all {
			awaitServiceHealth(t, l, 20*time.Second, e.name, want...)
		}
	}
	die := func(i int) {
		for _, d := range alive[i] {
			d.shut()
		}
	}
	rise := func(i int) {
		for _, d := range alive[i] {
			d.open(t)
		}
	}
	find("up", "up")
	gone, stays := l.Endpoints()[0].Name(), l.Endpoints()[1].Name()

	callers := callAll(t, l, all)
	die(0)
	find("down", "up")
	expectAnswers(t, "kept", callers, func(c client) string { return c.who })
	expectAnswers(t, "new", callAll(t, l, all), func(client) string { return stays })
	set("--on-down", "reset")
	for _, c := range callers {
		if c.who == gone {
			expectRefused(t, c)
		}
	}
	expectAnswers(t, "of the other when one's are reset", with(callers, stays), func(client) string { return stays })

	set("--on-down", "keep")
	rise(0)
	find("up", "up")
	callers = callAll(t, l, all)
	set("--on-down", "move")
	die(0)
	find("down", "up")
	for _, c := range with(callers, gone) {
		expectMoved(t, c, stays)
	}
	expectAnswers(t, "of the other when one's are moved", with(callers, stays), func(client) string { return stays })

	die(1)
	find("down", "down")
	for _, c := range callAll(t, l, all) {
		if c.who == "" {
			t.Errorf("%s: all are down and the service is open: no answer", c.of.name)
		}
	}
	set("--all-down", "closed")
	expectClosed(t, l, all)
	for _, e := range all {
		cli(t, n, "service", "delete", e.name)
	}
}

// expectClosed holds that new flows are refused, and that it is told why.
func expectClosed(t *testing.T, l *lab.Lab, all []effect) {
	t.Helper()
	for _, e := range all {
		if c, err := e.call(t, l); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: all are down and the service is closed: answer %q, error %v", e.name, c.who, err)
		}
	}
	if shown := cli(t, l.Nodes()[1], "service", "show", "tcp6"); strings.Count(shown, "down: connection refused") != 2 {
		t.Errorf("service show does not tell why both are out:\n%s", shown)
	}
}

// declareEffects makes the services, and servers for them. It returns the servers that are probed, by endpoint.
func declareEffects(t *testing.T, l *lab.Lab) (alive [2][]*door) {
	t.Helper()
	n := l.Nodes()[0]
	cli(t, n, "vip", "create", lab.ServiceVIP6().String())
	cli(t, n, "vip", "create", lab.IPv6.GatewayVIP().String(), "--kind", "gateway")
	for i := range alive {
		ep := l.Endpoints()[i]
		for _, f := range lab.Families() {
			sayWho(t, ep, netip.AddrPortFrom(ep.AddrIn(f), effectsPort))
			alive[i] = append(alive[i], doorAt(t, ep, netip.AddrPortFrom(ep.AddrIn(f), aliveProbed)))
		}
	}
	for _, e := range effects() {
		args := []string{
			"service", "create", e.name, "--vip", e.family.ServiceVIP().String(), "--port", fmt.Sprint(effectsPort), "--protocol", e.protocol,
			"--mode", "fullnat", "--probe-port", fmt.Sprint(aliveProbed),
		}
		for _, ep := range l.Endpoints()[:len(alive)] {
			args = append(args, "--endpoint", netip.AddrPortFrom(ep.AddrIn(e.family), effectsPort).String())
		}
		cli(t, n, append(args, probedFast()...)...)
	}
	waitApplied(t, l)
	return alive
}

// callAll opens four flows to each service.
func callAll(t *testing.T, l *lab.Lab, all []effect) (out []client) {
	t.Helper()
	for _, e := range all {
		for range 4 {
			c, err := e.call(t, l)
			if err != nil {
				t.Errorf("%s: a new flow: %v", e.name, err)
				continue
			}
			out = append(out, c)
		}
	}
	return out
}

func with(all []client, who string) (out []client) {
	for _, c := range all {
		if c.who == who {
			out = append(out, c)
		}
	}
	return out
}

// expectAnswers holds who answers each flow.
func expectAnswers(t *testing.T, what string, all []client, want func(client) string) {
	t.Helper()
	for _, c := range all {
		if who, err := c.ask(); err != nil || who != want(c) {
			t.Errorf("%s: %s flow, first of %s: answer %q, error %v; want %s", c.of.name, what, c.who, who, err, want(c))
		}
	}
}

// expectRefused waits until a flow is told that it is over: by a reset, although it is silent, or by an ICMP error to what it
// sends next.
func expectRefused(t *testing.T, c client) {
	t.Helper()
	if c.of.protocol == "tcp" {
		expectReset(t, c.Conn)
		return
	}
	eventually(t, 15*time.Second, c.of.name+": a flow of the dead endpoint to be refused", func(context.Context) error {
		switch who, err := c.ask(); {
		case errors.Is(err, syscall.ECONNREFUSED):
			return nil
		case err == nil && who != c.who:
			t.Fatalf("%s: a flow of %s that is to be reset is answered by %s", c.of.name, c.who, who)
		default:
			return fmt.Errorf("answer %q, error %v", who, err)
		}
		return nil
	})
}

// expectMoved waits until a flow goes on at another endpoint. A connection of TCP cannot: it is reset as soon as it speaks.
func expectMoved(t *testing.T, c client, to string) {
	t.Helper()
	eventually(t, 15*time.Second, c.of.name+": a flow of the dead endpoint to be moved", func(context.Context) error {
		who, err := c.ask()
		if c.of.protocol == "tcp" && errors.Is(err, syscall.ECONNRESET) || c.of.protocol == "udp" && err == nil && who == to {
			return nil
		}
		if err != nil || who != c.who {
			t.Fatalf("%s: moved from %s: answer %q, error %v", c.of.name, c.who, who, err)
		}
		return fmt.Errorf("%s answers still", who)
	})
}
