package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestJoinerReachesTheClusterOfItsToken(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNJoin))
	tok, err := NewToken("lb", ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := DialJoin(t.Context(), server.addr(), tok.CAHash)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if got := readLine(t, conn); got != "hello " {
		t.Errorf("the server saw %q", got)
	}
	if name, ok := PeerOf(conn); name != "lb1" || !ok {
		t.Errorf("the joiner sees %q, %v", name, ok)
	}
	if _, err := conn.Write([]byte("more\n")); err != nil || readLine(t, conn) != "more" {
		t.Errorf("the connection does not go on: %v", err)
	}
}

func TestDialJoinTellsItsFailuresApart(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	hash := sha256.Sum256(ca.Certificate())
	taking := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNJoin))
	notTaking := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft))
	otherCluster := startMux(t, newTestIdentity(t, newTestCA(t), "lb1"), serveEcho(ALPNJoin))
	imposter := newTestIdentity(t, newTestCA(t), "lb1").tlsCertificate()
	imposter.Certificate = [][]byte{imposter.Certificate[0], ca.Certificate()} // shows our CA, was not signed by it
	posing := serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{imposter}, NextProtos: []string{ALPNJoin}})
	caItself := serveTLS(t, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPNJoin},
		Certificates: []tls.Certificate{{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}},
	})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()

	tests := []struct {
		name, addr string
		hash       [32]byte
		is         error
	}{
		{"right", taking.addr(), hash, nil},
		{"wrong hash", taking.addr(), sha256.Sum256([]byte("x")), ErrWrongCA},
		{"another cluster", otherCluster.addr(), hash, ErrWrongCA},
		{"a server that only shows the CA's certificate", posing, hash, ErrWrongCA},
		{"the CA as a server", caItself, hash, ErrWrongCA},
		{"nothing listens", closed.Addr().String(), hash, ErrUnreachable},
		{"a node that takes no joiners", notTaking.addr(), hash, ErrNotPontoon},
		{"something that speaks no TLS", serveText(t, "SSH-2.0-OpenSSH\r\n"), hash, ErrNotPontoon},
		{"something that hangs up", serveText(t, ""), hash, ErrNotPontoon},
	}
	all := []error{ErrWrongCA, ErrUnreachable, ErrNotPontoon, ErrRefused}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := DialJoin(t.Context(), tt.addr, tt.hash)
			if err == nil {
				_ = conn.Close()
			} else {
				wantError(t, err, "join through "+tt.addr)
			}
			for _, e := range all {
				if errors.Is(err, e) != (e == tt.is) {
					t.Errorf("error is %v", err)
				}
			}
		})
	}
}

func TestDialJoinSaysThatAStoppedDaemonDoesNotAnswer(t *testing.T) {
	checkLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = DialJoin(ctx, l.Addr().String(), [32]byte{})
	wantError(t, err, "daemon there does not answer")
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("error is %v", err)
	}
}

func TestJoinersAreLimitedAndLeavingMakesRoom(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	hash := sha256.Sum256(ca.Certificate())
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNJoin, ALPNRaft), func(c *MuxConfig) { c.MaxJoins = 2 })
	var open []net.Conn
	for range 2 {
		conn, err := DialJoin(t.Context(), server.addr(), hash)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		open = append(open, conn)
	}
	_, err := DialJoin(t.Context(), server.addr(), hash)
	wantError(t, err, "too many nodes are joining")
	if !errors.Is(err, ErrRefused) {
		t.Errorf("error is %v", err)
	}
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
	conn, err := client.Dial(t.Context(), server.addr(), ALPNRaft, "lb1") // members are not limited by it
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	_ = open[0].Close()
	eventually(t, 5*time.Second, "room for a joiner", func() bool {
		conn, err := DialJoin(t.Context(), server.addr(), hash)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

// serveTLS runs a plain TLS server that shakes hands, welcomes and waits.
func serveTLS(t *testing.T, cfg *tls.Config) string {
	return serveRaw(t, func(conn net.Conn) {
		tc := tls.Server(conn, cfg)
		if tc.Handshake() == nil && writeGreeting(tc, nil) == nil {
			_, _ = io.Copy(io.Discard, tc)
		}
	})
}

func serveText(t *testing.T, text string) string {
	return serveRaw(t, func(conn net.Conn) { _, _ = io.WriteString(conn, text) })
}

func serveRaw(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil
			}
			g.Go(func() error {
				defer func() { _ = conn.Close() }()
				serve(conn)
				return nil
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); _ = g.Wait() })
	return l.Addr().String()
}
