package backend

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab/traffic"
	"pontoon/internal/roottest"
)

// here is the test's own namespace.
type here struct{}

func (here) Do(fn func() error) error { return fn() }

// freePort is one of loopback that nobody has.
func freePort(t *testing.T, network string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// running is a server that serves until the test ends.
func running(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Name, cfg.Place = "ep1", here{}
	if !cfg.At.IsValid() {
		network := "tcp"
		if cfg.Kind == UDP {
			network = "udp"
		}
		cfg.At = freePort(t, network)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	set(t, s, Behaviour{})
	return s
}

func set(t *testing.T, s *Server, b Behaviour) {
	t.Helper()
	if err := s.Set(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// patience bounds a question to a server that hangs.
const patience = 200 * time.Millisecond

// question asks a server of one kind for one answer.
type question func(ctx context.Context, s *Server) error

func askTCP(ctx context.Context, s *Server) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", s.At().String())
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	return traffic.Exchange(c, 7)
}

// askHTTP wants 200 and the server's body.
func askHTTP(scheme string) question {
	return func(ctx context.Context, s *Server) error {
		tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: s.cfg.Host}}
		defer tr.CloseIdleConnections()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+s.At().String()+s.cfg.Path, nil)
		if err != nil {
			return err
		}
		r.Host = s.cfg.Host
		resp, err := tr.RoundTrip(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || string(body) != s.cfg.Body) {
			err = fmt.Errorf("%d: %s", resp.StatusCode, body)
		}
		return err
	}
}

// askGRPC wants SERVING for the server's service.
func askGRPC(ctx context.Context, s *Server) error {
	p := &http.Protocols{}
	p.SetHTTP2(s.cfg.TLS)
	p.SetUnencryptedHTTP2(!s.cfg.TLS)
	tr := &http.Transport{Protocols: p, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.CloseIdleConnections()
	scheme := "http"
	if s.cfg.TLS {
		scheme = "https"
	}
	name := s.cfg.GRPCService
	m := append([]byte{0, 0, 0, 0, byte(len(name) + 2), 1<<3 | 2, byte(len(name))}, name...)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+"://"+s.At().String()+grpcCheck, bytes.NewReader(m))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	resp, err := tr.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.Trailer.Get("Grpc-Status") != "0" || !bytes.Equal(body, []byte{0, 0, 0, 0, 2, 8, 1})) {
		err = fmt.Errorf("status %q, body %v", resp.Trailer.Get("Grpc-Status"), body)
	}
	return err
}

func askUDP(ctx context.Context, s *Server) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.At()))
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err == nil && string(buf[:n]) != s.cfg.Body {
		err = fmt.Errorf("answer: %s", buf[:n])
	}
	return err
}

var errAborted = errors.New("aborted")

// askSCTP wants an INIT ACK with the tag of its INIT.
func askSCTP(ctx context.Context, s *Server) error {
	c, err := net.DialIP("ip4:132", nil, &net.IPAddr{IP: s.At().Addr().AsSlice()})
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	const from = 40000
	if _, err := c.Write(sctpInitFor(from, s.At().Port(), 0x01020304)); err != nil {
		return err
	}
	for buf := make([]byte, 1500); ; {
		n, _, err := c.ReadFromIP(buf) // without the IP header, unlike Read
		if err != nil {
			return err
		}
		p := buf[:n]
		if len(p) < sctpHeader+sctpChunk || p[2] != from>>8 || p[3] != from&255 || !bytes.Equal(p[4:8], []byte{1, 2, 3, 4}) {
			continue // the INIT itself, which loopback shows to its sender as well
		}
		if p[sctpHeader] == sctpAbort {
			return errAborted
		}
		return nil
	}
}

// sctpInitFor is an INIT as a peer sends it.
func sctpInitFor(from, to uint16, tag uint32) []byte {
	p := make([]byte, sctpHeader+sctpInitSize)
	p[0], p[1], p[2], p[3] = byte(from>>8), byte(from), byte(to>>8), byte(to)
	c := p[sctpHeader:]
	c[0], c[3] = sctpInit, sctpInitSize
	c[4], c[5], c[6], c[7] = byte(tag>>24), byte(tag>>16), byte(tag>>8), byte(tag)
	c[13], c[15], c[19] = 1, 1, 1
	sum := sctpSum(p)
	p[8], p[9], p[10], p[11] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	return p
}

// ask asks once, with little patience.
func ask(t *testing.T, s *Server, q question) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return q(ctx, s)
}

// asked is a server to be and what asks it.
type asked struct {
	cfg Config
	ask question
}

// kinds are all of them.
func kinds() map[string]asked {
	return map[string]asked{
		"tcp":          {Config{Kind: TCP}, askTCP},
		"http":         {Config{Kind: HTTP, Host: "shop.test", Path: "/ok"}, askHTTP("http")},
		"https":        {Config{Kind: HTTPS, Host: "shop.test", Body: "open"}, askHTTP("https")},
		"grpc":         {Config{Kind: GRPC, GRPCService: "shop"}, askGRPC},
		"grpc and tls": {Config{Kind: GRPC, TLS: true}, askGRPC},
		"udp":          {Config{Kind: UDP, Body: "pong"}, askUDP},
		"sctp":         {Config{Kind: SCTP, At: netip.MustParseAddrPort("127.0.0.1:9132")}, askSCTP},
	}
}

func TestEachKindDiesHangsFailsAndComesBack(t *testing.T) {
	for name, k := range kinds() {
		t.Run(name, func(t *testing.T) {
			if k.cfg.Kind == SCTP {
				roottest.Need(t)
			}
			s := running(t, k.cfg)
			well := func(when string) {
				t.Helper()
				if err := ask(t, s, k.ask); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
			well("at first")
			set(t, s, Behaviour{Mode: Dead})
			if err := ask(t, s, k.ask); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, errAborted) {
				t.Errorf("dead: %v", err)
			}
			set(t, s, Behaviour{})
			well("back from the dead")
			set(t, s, Behaviour{Mode: Hangs})
			if err := ask(t, s, k.ask); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hanging: %v", err)
			}
			set(t, s, Behaviour{Mode: Fails})
			if err := ask(t, s, k.ask); err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("failing: %v", err)
			}
			set(t, s, Behaviour{Mode: Slow, Delay: patience / 4})
			began := time.Now()
			well("slow")
			if took := time.Since(began); took < patience/4 {
				t.Errorf("a slow server answers after %s", took)
			}
			set(t, s, Behaviour{Mode: Slow, Delay: 10 * patience})
			if err := ask(t, s, k.ask); err == nil {
				t.Error("a server slower than patience was waited for")
			}
			set(t, s, Behaviour{})
			well("at last")
			if got := s.Stats().Requests; got < 3 {
				t.Errorf("%d requests were answered", got)
			}
		})
	}
}

// A server that hangs, as one that is stopped, still has its connections.
func TestARequestToAHangingServerIsAnsweredWhenItIsWellAgain(t *testing.T) {
	s := running(t, Config{Kind: HTTP})
	set(t, s, Behaviour{Mode: Hangs})
	var g errgroup.Group
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	g.Go(func() error { return askHTTP("http")(ctx, s) })
	if err := ask(t, s, askHTTP("http")); err == nil {
		t.Error("it does not hang")
	}
	set(t, s, Behaviour{})
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAFlappingServerIsDeadAndWellInTurns(t *testing.T) {
	s := running(t, Config{Kind: TCP})
	set(t, s, Behaviour{Mode: Flaps, Rate: 5})
	var seen []bool // up or not, each once
	deadline := time.Now().Add(10 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); len(seen) < 6; {
		up := ask(t, s, askTCP) == nil
		if len(seen) == 0 || seen[len(seen)-1] != up {
			seen = append(seen, up)
		}
		if <-tick.C; time.Now().After(deadline) {
			t.Fatalf("only %v were seen", seen)
		}
	}
	set(t, s, Behaviour{})
	if err := ask(t, s, askTCP); err != nil {
		t.Errorf("when it flaps no more: %v", err)
	}
}

func TestAServerKnowsItsHostAndPathAndService(t *testing.T) {
	web := running(t, Config{Kind: HTTP, Host: "shop.test", Path: "/ok"})
	secure := running(t, Config{Kind: HTTPS, Host: "shop.test"})
	rpc := running(t, Config{Kind: GRPC, GRPCService: "shop"})
	for what, tc := range map[string]struct {
		s      *Server
		change func(*Config)
		ask    question
	}{
		"host":        {web, func(c *Config) { c.Host = "other.test" }, askHTTP("http")},
		"path":        {web, func(c *Config) { c.Path = "/other" }, askHTTP("http")},
		"server name": {secure, func(c *Config) { c.Host = "other.test" }, askHTTP("https")},
		"service":     {rpc, func(c *Config) { c.GRPCService = "other" }, askGRPC},
	} {
		wanted := &Server{cfg: tc.s.cfg}
		if err := ask(t, wanted, tc.ask); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		tc.change(&wanted.cfg)
		if err := ask(t, wanted, tc.ask); err == nil {
			t.Errorf("another %s is answered as well", what)
		}
	}
}

func TestBadConfigurationsAndBehavioursAreRefused(t *testing.T) {
	err := Config{Kind: "ftp"}.Validate()
	for _, want := range []string{"ftp", "address and a port", "no place"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %q in: %v", want, err)
		}
	}
	s := running(t, Config{Kind: TCP})
	for _, b := range []Behaviour{{Mode: Slow}, {Mode: Flaps}, {Mode: Flaps, Rate: 1000}, {Mode: 99}} {
		if err := s.Set(t.Context(), b); err == nil {
			t.Errorf("%+v is taken", b)
		}
	}
}

func TestAnEndedServerSaysSo(t *testing.T) {
	s, err := New(Config{Name: "ep1", Kind: TCP, At: freePort(t, "tcp"), Place: here{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), Behaviour{}); !errors.Is(err, ErrEnded) {
		t.Errorf("got %v", err)
	}
}

func TestSCTPIsAnsweredByTheBook(t *testing.T) {
	init := sctpInitFor(40000, 9132, 0x01020304)
	for name, tc := range map[string]struct {
		packet []byte
		port   uint16
		abort  bool
		want   byte // type of the chunk, 0 for no answer
	}{
		"init":             {init, 9132, false, sctpInitAck},
		"nobody listens":   {init, 9132, true, sctpAbort},
		"another port":     {init, 9133, false, 0},
		"a short one":      {init[:20], 9132, false, 0},
		"a wrong checksum": {append(slices.Clone(init[:31]), 9), 9132, false, 0},
	} {
		a := answerSCTP(tc.packet, tc.port, tc.abort)
		if tc.want == 0 {
			if a != nil {
				t.Errorf("%s: answered with %x", name, a)
			}
			continue
		}
		if len(a) < 16 || a[12] != tc.want || !bytes.Equal(a[4:8], []byte{1, 2, 3, 4}) || len(a)-12 != int(a[14])<<8|int(a[15]) {
			t.Errorf("%s: %x", name, a)
		}
	}
	// The check value of CRC-32C, so that both ends of these tests are not wrong alike.
	p := append([]byte("12345678"), 0, 0, 0, 0)
	if got := sctpSum(p); got != sctpSum(append([]byte("12345678"), 1, 2, 3, 4)) {
		t.Error("the checksum depends on its own field")
	}
}
