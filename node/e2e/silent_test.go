package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// echo answers every connection with what it says.
func echo(t testing.TB, h *lab.Host, port uint16) {
	t.Helper()
	ln, err := h.Listen(netip.AddrPortFrom(h.Addr(), port))
	if err != nil {
		t.Fatal(err)
	}
	background(t, "echo on "+h.Name(), func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
		defer stop()
		var g errgroup.Group
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return g.Wait()
			} else if err != nil {
				return err
			}
			g.Go(func() error {
				stop := context.AfterFunc(ctx, func() { _ = c.Close() })
				defer stop()
				defer c.Close()
				_, _ = io.Copy(c, c) // the client says what went wrong
				return nil
			})
		}
	})
}

// say sends a line and waits for its echo.
func say(c net.Conn, line string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	back := make([]byte, len(line))
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if string(back) != line {
		return fmt.Errorf("said %q, heard %q", line, back)
	}
	return nil
}

// A connection that says nothing is adopted by nobody while its owner is away,
// and the owner comes back with an empty table: what the others hold of it must
// outlast that, and the next death too.
func TestSilentConnectionsOutliveTheirOwnersReturn(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Nodes: 3, Clients: 1, Endpoints: 1})
	echo(t, l.Endpoints()[0], webPort)
	declare(t, l, "fullnat", true)
	var conns []net.Conn
	for i := range 20 {
		c, err := l.Clients()[0].Dial(within(t, 10*time.Second), webVIP)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := say(c, fmt.Sprintf("hello %d\n", i)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	waitSameFlows(t, l.Nodes(), len(conns))
	before := ""
	for range 2 {
		victim := master(t, l, before)
		if err := victim.PowerOff(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		master(t, l, victim.Name())
		if err := victim.PowerOn(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitHealthy(t, l)
		waitSameFlows(t, l.Nodes(), len(conns))
	}
	for i, c := range conns {
		if err := say(c, fmt.Sprintf("still here %d\n", i)); err != nil {
			t.Errorf("connection %d was lost while it was silent: %v", i, err)
		}
	}
}
