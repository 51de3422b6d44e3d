package traffic

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// resum mends the checksum of a frame that was tampered with.
func resum(b []byte) []byte {
	n := len(b) - trailerSize
	return binary.BigEndian.AppendUint32(b[:n], crc32.Checksum(b[:n], castagnoli()))
}

// proxy is a TCP proxy that can do to a stream what a bad load balancer does.
type proxy struct {
	ln     net.Listener
	target string

	mu     sync.Mutex
	open   *sync.Cond // signalled when held changes
	held   bool
	tamper func(toServer bool, b []byte) []byte
	conns  []*net.TCPConn // the clients' sides
}

func startProxy(t *testing.T, target netip.AddrPort) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, target: target.String()}
	p.open = sync.NewCond(&p.mu)
	var g errgroup.Group
	g.Go(func() error {
		for {
			c, err := ln.Accept()
			if err != nil {
				return nil
			}
			g.Go(func() error { p.serve(c.(*net.TCPConn)); return nil })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.hold(false)
		p.reset(1 << 30)
		_ = g.Wait()
	})
	return p
}

func (p *proxy) addr() netip.AddrPort { return p.ln.Addr().(*net.TCPAddr).AddrPort() }

func (p *proxy) serve(c *net.TCPConn) {
	defer c.Close()
	s, err := net.Dial("tcp4", p.target)
	if err != nil {
		return
	}
	defer s.Close()
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	var g errgroup.Group
	g.Go(func() error { p.pump(s, c, true); return nil })
	p.pump(c, s, false)
	_ = g.Wait()
}

func (p *proxy) pump(dst, src net.Conn, toServer bool) {
	defer dst.Close()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		b := buf[:n]
		p.mu.Lock()
		for p.held {
			p.open.Wait()
		}
		if p.tamper != nil {
			b = p.tamper(toServer, b)
		}
		p.mu.Unlock()
		if _, err := dst.Write(b); err != nil {
			return
		}
	}
}

// hold keeps everything back until hold(false).
func (p *proxy) hold(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = on
	p.open.Broadcast()
}

// reset ends up to n connections with a TCP reset.
func (p *proxy) reset(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns[:min(n, len(p.conns))] {
		_ = c.SetLinger(0)
		c.Close()
	}
}

// once makes f tamper with a single piece of the stream in one direction.
func (p *proxy) once(toServer bool, f func([]byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tamper = func(dir bool, b []byte) []byte {
		if dir != toServer {
			return b
		}
		p.tamper = nil
		return f(b)
	}
}

func dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp4", to.String())
}

// startServer serves on loopback until the end of the test.
func startServer(t *testing.T) (*Server, netip.AddrPort) {
	t.Helper()
	s, err := NewServer(ServerConfig{Name: "ep1"})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error { return s.Serve(ctx, ln) })
	return s, ln.Addr().(*net.TCPAddr).AddrPort()
}

// startClients opens n connections and runs them until the end of the test.
func startClients(t *testing.T, to netip.AddrPort, n int) *Clients {
	t.Helper()
	c, err := NewClients(ClientsConfig{Dial: dialTCP, Target: to, Count: n, Interval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	background(t, c.Run)
	return c
}

// background runs fn until the end of the test, where it must return nil.
func background(t *testing.T, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return fn(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until ok, or fails the test.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := within(t, 5*time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// wait lets time pass, where time is what the test is about.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	<-within(t, d).Done()
}
