package transport

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// codePoint reads what the socket below a connection of this package sends with.
func codePoint(t *testing.T, conn net.Conn) int {
	t.Helper()
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	if tracked, ok := conn.(*trackedConn); ok {
		conn = tracked.Conn
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if conn.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	field := 0
	var failed error
	if err := raw.Control(func(fd uintptr) { field, failed = unix.GetsockoptInt(int(fd), level, option) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return field >> 2
}

func TestBothSidesMarkTheirPacketsByProtocol(t *testing.T) {
	for family, loopback := range loopbacks(t) {
		for alpn, want := range map[string]int{ALPNRaft: DSCPRaft, ALPNReplication: DSCPReplication, ALPNAPI: DSCPDefault} {
			t.Run(family+" "+alpn, func(t *testing.T) {
				checkLeaks(t)
				ca := newTestCA(t)
				accepted := make(chan net.Conn, 1)
				serve := func(m *Mux) {
					m.Handle(alpn, func(ctx context.Context, conn net.Conn, _ string) {
						accepted <- conn
						<-ctx.Done()
					})
				}
				server := startMux(t, newTestIdentity(t, ca, "lb1"), serve, func(c *MuxConfig) { c.Address = net.JoinHostPort(loopback, "0") })
				client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				conn, err := client.Dial(ctx, server.addr(), alpn, "lb1")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				if got := codePoint(t, conn); got != want {
					t.Errorf("the side that dials sends with %d, want %d", got, want)
				}
				select {
				case far := <-accepted:
					if got := codePoint(t, far); got != want {
						t.Errorf("the side that accepts sends with %d, want %d", got, want)
					}
				case <-ctx.Done():
					t.Fatal("nothing was accepted")
				}
			})
		}
	}
}
