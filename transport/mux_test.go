package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// members is an Authorize that tests change while things run.
type members struct {
	mu   sync.Mutex
	gone map[string]bool
	keys map[string][32]byte // who has one here must show it
}

var (
	errNotMember = errors.New("not a member of this cluster")
	errOtherKey  = errors.New("another machine has its name")
)

func (m *members) authorize(node string, key [32]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone[node] {
		return errNotMember
	}
	if want, bound := m.keys[node]; bound && key != want {
		return errOtherKey
	}
	return nil
}

// bind says which machine has the name.
func (m *members) bind(id *Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = map[string][32]byte{}
	}
	m.keys[id.Node()] = id.Key()
}

func (m *members) remove(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone == nil {
		m.gone = map[string]bool{}
	}
	m.gone[node] = true
}

// testMux is a Mux on loopback with its own view of the membership.
type testMux struct {
	*Mux
	members *members
	stop    func() // ends Run and waits for it
}

func (m *testMux) addr() string { return m.Addr().String() }

// startMux runs a Mux after setup registered its protocols, until the test ends.
func startMux(t testing.TB, id *Identity, setup func(*Mux), change ...func(*MuxConfig)) *testMux {
	t.Helper()
	tm := &testMux{members: &members{}}
	cfg := MuxConfig{
		Address:          "127.0.0.1:0",
		Identity:         id,
		Authorize:        tm.members.authorize,
		HandshakeTimeout: 2 * time.Second,
		Logger:           slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if tm.Mux, err = NewMux(cfg); err != nil {
		t.Fatal(err)
	}
	if setup != nil {
		setup(tm.Mux)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tm.Run(ctx) }()
	tm.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("mux ended with %v", err)
		}
	})
	t.Cleanup(tm.stop)
	return tm
}

// echo answers every byte, after a line that names the peer it sees.
func echo(_ context.Context, conn net.Conn, peer string) {
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "hello %s\n", peer)
	_, _ = io.Copy(conn, conn)
}

func serveEcho(alpns ...string) func(*Mux) {
	return func(m *Mux) {
		for _, a := range alpns {
			m.Handle(a, echo)
		}
	}
}

func readLine(t *testing.T, conn net.Conn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			t.Fatalf("read a line, got %q: %v", line, err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

func TestMembersReachEachOtherByProtocol(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	a := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNAPI))
	b := startMux(t, newTestIdentity(t, ca, "lb2"), func(m *Mux) {
		for _, alpn := range []string{ALPNRaft, ALPNReplication} {
			m.Handle(alpn, func(_ context.Context, conn net.Conn, peer string) {
				defer func() { _ = conn.Close() }()
				_, _ = fmt.Fprintf(conn, "%s from %s\n", alpn, peer)
			})
		}
	})
	for _, alpn := range []string{ALPNRaft, ALPNReplication} {
		conn, err := a.Dial(t.Context(), b.addr(), alpn, "lb2")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := readLine(t, conn), alpn+" from lb1"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if peer, ok := PeerOf(conn); peer != "lb2" || !ok {
			t.Errorf("PeerOf says %q, %v", peer, ok)
		}
		if v := conn.(*tls.Conn).ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("TLS version is %x", v)
		}
		_ = conn.Close()
	}
	// Any member will do when no name is wanted, and the other direction works too.
	conn, err := b.Dial(t.Context(), a.addr(), ALPNAPI, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := readLine(t, conn); got != "hello lb2" {
		t.Errorf("got %q", got)
	}
	_ = conn.Close()
}

func TestDialRefusesWhomItShould(t *testing.T) {
	checkLeaks(t)
	ca, otherCA := newTestCA(t), newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft))
	server.members.remove("lb9")
	foreign := startMux(t, newTestIdentity(t, otherCA, "lb1"), serveEcho(ALPNRaft))
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
	wary := startMux(t, newTestIdentity(t, ca, "lb3"), nil)
	wary.members.remove("lb1")
	removed := startMux(t, newTestIdentity(t, ca, "lb9"), nil)
	older, newer := newTestIdentity(t, ca, "lb4"), newTestIdentity(t, ca, "lb4")
	server.members.bind(newer)
	client.members.bind(newer)
	outdated, renewed := startMux(t, older, serveEcho(ALPNRaft)), startMux(t, newer, serveEcho(ALPNRaft))

	tests := []struct {
		name             string
		from, to         *testMux
		alpn, node, want string
		is               error
	}{
		{"server of another CA", client, foreign, ALPNRaft, "lb1", "unknown authority", nil},
		{"client of another CA", foreign, server, ALPNRaft, "lb1", "unknown authority", nil},
		{"another node than wanted", client, server, ALPNRaft, "lb5", "the node there is lb1, not lb5", nil},
		{"name in other case", client, server, ALPNRaft, "LB1", "the node there is lb1, not LB1", nil},
		{"the dialler knows it is removed", wary, server, ALPNRaft, "lb1", "not a member", errNotMember},
		{"the server knows it is removed", removed, server, ALPNRaft, "lb1", "node lb9: not a member", ErrRefused},
		{"a machine whose name another has now", outdated, server, ALPNRaft, "lb1", "node lb4: another machine has its name", ErrRefused},
		{"the dialler knows that another has the name", client, outdated, ALPNRaft, "lb4", "node lb4: another machine has its name", errOtherKey},
		{"the machine that has the name now, outbound", renewed, server, ALPNRaft, "lb1", "", nil},
		{"the machine that has the name now, inbound", client, renewed, ALPNRaft, "lb4", "", nil},
		{"protocol that is not served", client, server, ALPNAPI, "lb1", "no application protocol", nil},
		{"protocol that does not exist", client, server, "h2", "lb1", "no application protocol", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := tt.from.Dial(t.Context(), tt.to.addr(), tt.alpn, tt.node)
			if err == nil {
				_ = conn.Close()
			}
			if tt.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantError(t, err, tt.want)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error is no %v", tt.is)
			}
		})
	}
	if conn, err := client.Dial(t.Context(), server.addr(), ALPNRaft, "lb1"); err != nil {
		t.Errorf("a member is refused after all that: %v", err)
	} else {
		_ = conn.Close()
	}
}

// rawClient tries a handshake with settings a Mux would never use. It returns the
// error of handshake or first read.
func rawClient(t *testing.T, addr string, cfg *tls.Config) error {
	t.Helper()
	cfg.InsecureSkipVerify = true
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	tc := tls.Client(raw, cfg)
	if err := tc.Handshake(); err != nil {
		return err
	}
	return readGreeting(tc)
}

func TestHandshakeMatrixOfForeignClients(t *testing.T) {
	checkLeaks(t)
	ca, otherCA := newTestCA(t), newTestCA(t)
	good, foreign := newTestIdentity(t, ca, "lb2").tlsCertificate(), newTestIdentity(t, otherCA, "lb2").tlsCertificate()
	caKey := tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft, ALPNJoin))
	tests := []struct {
		name, want string // want "" = admitted
		cfg        *tls.Config
	}{
		{"a member", "", &tls.Config{Certificates: []tls.Certificate{good}, NextProtos: []string{ALPNRaft}}},
		{"no certificate", "certificate required", &tls.Config{NextProtos: []string{ALPNRaft}}},
		{"certificate of another CA", "unknown certificate authority", &tls.Config{Certificates: []tls.Certificate{foreign}, NextProtos: []string{ALPNRaft}}},
		{"the CA's own certificate", "bad certificate", &tls.Config{Certificates: []tls.Certificate{caKey}, NextProtos: []string{ALPNRaft}}},
		{"no protocol", "internal error", &tls.Config{Certificates: []tls.Certificate{good}}},
		{"unknown protocol", "no application protocol", &tls.Config{Certificates: []tls.Certificate{good}, NextProtos: []string{"h2"}}},
		{"our marker for no protocol, no certificate", "certificate required", &tls.Config{NextProtos: []string{noProtocol}}},
		{"TLS 1.2", "protocol version", &tls.Config{Certificates: []tls.Certificate{good}, NextProtos: []string{ALPNRaft}, MaxVersion: tls.VersionTLS12}},
		{"joiner without certificate", "", &tls.Config{NextProtos: []string{ALPNJoin}}},
		{"joiner that also offers Raft", "", &tls.Config{NextProtos: []string{ALPNJoin, ALPNRaft}}},
		{"Raft first, join second, no certificate", "certificate required", &tls.Config{NextProtos: []string{ALPNRaft, ALPNJoin}}},
		{"unknown first, join second", "", &tls.Config{NextProtos: []string{"h2", ALPNJoin}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cfg.MaxVersion == 0 {
				tt.cfg.MinVersion = tls.VersionTLS13
			}
			err := rawClient(t, server.addr(), tt.cfg)
			if tt.want == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			wantError(t, err, tt.want)
		})
	}
}

func TestJoinersProtocolIsTheOneTheirRulesWereFor(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	spoken := make(chan string, 1)
	note := func(_ context.Context, conn net.Conn, peer string) {
		spoken <- conn.(*tls.Conn).ConnectionState().NegotiatedProtocol + " by " + peer
		_ = conn.Close()
	}
	server := startMux(t, newTestIdentity(t, ca, "lb1"), func(m *Mux) {
		m.Handle(ALPNRaft, note)
		m.Handle(ALPNJoin, note)
	})
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{ALPNJoin, ALPNRaft}}
	if err := rawClient(t, server.addr(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := <-spoken; got != ALPNJoin+" by " {
		t.Errorf("spoken was %q", got)
	}
}

func TestRemovedNodeCannotResumeItsSession(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft))
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPNRaft}, InsecureSkipVerify: true, ServerName: "lb1",
		Certificates:       []tls.Certificate{newTestIdentity(t, ca, "lb2").tlsCertificate()},
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
	for i := range 3 {
		raw, err := net.Dial("tcp", server.addr())
		if err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(raw, cfg)
		err = errors.Join(tc.Handshake(), tc.SetDeadline(time.Now().Add(5*time.Second)), readGreeting(tc))
		if i == 2 {
			wantError(t, err, "not a member")
		} else if err != nil {
			t.Fatal(err)
		} else if got := readLine(t, tc); got != "hello lb2" || tc.ConnectionState().DidResume {
			t.Errorf("round %d: %q, resumed %v", i, got, tc.ConnectionState().DidResume)
		}
		_ = raw.Close()
		if i == 1 {
			server.members.remove("lb2")
		}
	}
}

func TestDisconnectClosesBothDirections(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	a := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft))
	removed := newTestIdentity(t, ca, "lb2")
	b := startMux(t, removed, serveEcho(ALPNRaft))
	c := startMux(t, newTestIdentity(t, ca, "lb3"), serveEcho(ALPNRaft))
	namesake := startMux(t, newTestIdentity(t, ca, "lb2"), serveEcho(ALPNRaft))
	dial := func(from, to *testMux) net.Conn {
		conn, err := from.Dial(t.Context(), to.addr(), ALPNRaft, "")
		if err != nil {
			t.Fatal(err)
		}
		readLine(t, conn)
		return conn
	}
	in, out, other, same := dial(b, a), dial(a, b), dial(c, a), dial(namesake, a)
	defer func() { _, _, _, _ = in.Close(), out.Close(), other.Close(), same.Close() }()

	a.members.remove("lb2")
	a.Disconnect("lb2", removed.Key())
	for name, conn := range map[string]net.Conn{"inbound": in, "outbound": out} {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		var one [1]byte
		if _, err := conn.Read(one[:]); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s connection of the removed node is still open: %v", name, err)
		}
	}
	if _, err := other.Write([]byte("still here\n")); err != nil || readLine(t, other) != "still here" {
		t.Errorf("another node's connection is hurt: %v", err)
	}
	if _, err := same.Write([]byte("still here\n")); err != nil || readLine(t, same) != "still here" {
		t.Errorf("the connection of another machine with the name is hurt: %v", err)
	}
	_, err := b.Dial(t.Context(), a.addr(), ALPNRaft, "lb1")
	wantError(t, err, "not a member")
}

func TestListenerServesHTTPWithThePeersCertificate(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "you are "+r.TLS.PeerCertificates[0].Subject.CommonName)
	})}
	var g errgroup.Group
	server := startMux(t, newTestIdentity(t, ca, "lb1"), func(m *Mux) {
		l := m.Listen(ALPNAPI)
		g.Go(func() error { return srv.Serve(l) })
	})
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
	hc := &http.Client{Transport: &http.Transport{DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return client.Dial(ctx, addr, ALPNAPI, "lb1")
	}}}
	for range 2 {
		res, err := hc.Get("https://" + server.addr() + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if string(body) != "you are lb2" {
			t.Errorf("got %q", body)
		}
	}
	hc.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("serve ended with %v", err)
	}
	// The server closed its listener: the protocol is refused, the port lives.
	_, err := client.Dial(t.Context(), server.addr(), ALPNAPI, "lb1")
	wantError(t, err, "no application protocol")
}

func TestConnectionNobodyTakesIsClosed(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb1"), func(m *Mux) { m.Listen(ALPNAPI) },
		func(c *MuxConfig) { c.HandshakeTimeout = 100 * time.Millisecond })
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
	conn, err := client.Dial(t.Context(), server.addr(), ALPNAPI, "lb1")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("read says %v, want the connection closed", err)
	}
	_ = conn.Close()
}

func TestRunLeavesNothingBehind(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	var l net.Listener
	server := startMux(t, newTestIdentity(t, ca, "lb1"), func(m *Mux) {
		m.Handle(ALPNRaft, echo)
		l = m.Listen(ALPNAPI)
	})
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
	conn, err := client.Dial(t.Context(), server.addr(), ALPNRaft, "lb1") // sits in a handler
	if err != nil {
		t.Fatal(err)
	}
	readLine(t, conn)
	taken, err := client.Dial(t.Context(), server.addr(), ALPNAPI, "lb1") // taken and then forgotten
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("tcp", server.addr()) // never says a word
	if err != nil {
		t.Fatal(err)
	}
	server.stop()
	for name, c := range map[string]net.Conn{"handled": conn, "taken": taken, "silent": silent} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s connection is open after Run: %v", name, err)
		}
		_ = c.Close()
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after Run says %v", err)
	}
	if _, err := server.Dial(t.Context(), client.addr(), ALPNRaft, ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Run says %v", err)
	}
	if err := server.Run(t.Context()); err == nil {
		t.Error("a mux ran twice")
	}
}

func TestSilentClientsHoldOnlyTheirSlotsAndNotForLong(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft), func(c *MuxConfig) {
		c.MaxHandshakes, c.HandshakeTimeout = 2, 200*time.Millisecond
	})
	for range 4 {
		c, err := net.Dial("tcp", server.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil)
	conn, err := client.Dial(t.Context(), server.addr(), ALPNRaft, "lb1")
	if err != nil {
		t.Fatalf("a member does not get through: %v", err)
	}
	_ = conn.Close()
}

func TestDialHonoursItsContextWhileThePeerIsSilent(t *testing.T) {
	checkLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client := startMux(t, newTestIdentity(t, newTestCA(t), "lb2"), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = client.Dial(ctx, l.Addr().String(), ALPNRaft, "lb1")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("dial took %s", d)
	}
}

func TestMuxConfigReportsEverythingThatIsMissing(t *testing.T) {
	_, err := NewMux(MuxConfig{DialTimeout: -1, MaxJoins: -1})
	for _, part := range []string{"address", "identity", "Authorize", "timeout", "limit"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not speak of %s", err, part)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, err = NewMux(MuxConfig{
		Address: l.Addr().String(), Identity: newTestIdentity(t, newTestCA(t), "lb1"),
		Authorize: func(string, [32]byte) error { return nil },
	})
	wantError(t, err, "address already in use")
}
