package backend

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab/traffic"
)

// Kind is the protocol a server speaks.
type Kind string

// The kinds.
const (
	TCP   Kind = "tcp"
	HTTP  Kind = "http"
	HTTPS Kind = "https"
	GRPC  Kind = "grpc"
	UDP   Kind = "udp"
	SCTP  Kind = "sctp"
)

// Mode is how a server behaves; the package comment says what that means for
// each kind.
type Mode uint8

// The modes.
const (
	Well Mode = iota
	Dead
	Hangs
	Fails
	Slow
	Flaps // dead and well in turns
)

// Behaviour is a mode with its measure. The zero value is well.
type Behaviour struct {
	Mode Mode
	// Delay is how long a Slow server takes for each request.
	Delay time.Duration
	// Rate is how many times a second a server that Flaps dies and comes back.
	Rate float64
}

func (b Behaviour) validate() error {
	switch {
	case b.Mode > Flaps:
		return fmt.Errorf("behaviour: there is no mode %d", b.Mode)
	case b.Mode == Slow && b.Delay <= 0:
		return errors.New("behaviour: a slow server needs a delay")
	case b.Mode == Flaps && (b.Rate <= 0 || b.Rate > 100):
		return fmt.Errorf("behaviour: a server flaps %g times a second: want more than 0, up to 100", b.Rate)
	}
	return nil
}

// Place is where a server's sockets are: Do runs fn on a thread that opens them
// there. A host of the lab is one.
type Place interface {
	Do(fn func() error) error
}

// Config says what a server is.
type Config struct {
	// Name is what the server calls itself to people, like ep1.
	Name string
	Kind Kind
	// At is where it listens; for SCTP the address has to be one of the place's own.
	At    netip.AddrPort
	Place Place
	// Host, of HTTP and HTTPS, is the only host requests are answered 200 for, and
	// of HTTPS and GRPC with TLS the name in the certificate and the only server name a handshake
	// may ask for. Empty is any, and "lab.test" in the certificate.
	Host string
	// Path, of HTTP and HTTPS, is the only path that is answered 200. Empty is any.
	Path string
	// Body is what HTTP, HTTPS and UDP answer when they are well: a line with the
	// server's name when empty.
	Body string
	// TLS makes GRPC serve by TLS.
	TLS bool
	// GRPCService is the only service, besides "", that GRPC knows.
	GRPCService string
	// Logger gets a line for each change; slog.DiscardHandler when nil.
	Logger *slog.Logger
}

// Validate reports everything that is wrong with the configuration at once.
func (c Config) Validate() error {
	var errs []error
	switch c.Kind {
	case TCP, HTTP, HTTPS, GRPC, UDP, SCTP:
	default:
		errs = append(errs, fmt.Errorf("there is no kind of server %q", c.Kind))
	}
	if !c.At.IsValid() || c.At.Port() == 0 {
		errs = append(errs, fmt.Errorf("server at %s: want an address and a port", c.At))
	}
	if c.Kind == SCTP && c.At.IsValid() && c.At.Addr().IsUnspecified() {
		errs = append(errs, errors.New("an SCTP server needs one address of its host"))
	}
	if c.Place == nil {
		errs = append(errs, errors.New("no place to open sockets in"))
	}
	return errors.Join(errs...)
}

// Server is one server. Run it; the other methods may be called by anybody.
type Server struct {
	cfg     Config
	traffic *traffic.Server // what TCP serves
	cert    *tls.Certificate
	sets    chan change
	ended   chan struct{} // closed at the end of Run

	requests atomic.Uint64

	mu      sync.Mutex
	now     Behaviour
	changed chan struct{} // closed, and made anew, when now changes
}

// change asks Run for another behaviour.
type change struct {
	to   Behaviour
	done chan error
}

// ErrEnded is returned for what is asked of a server after its Run.
var ErrEnded = errors.New("the server has ended")

// New returns a server that does not run yet and will be well.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	cfg.Body = cmp.Or(cfg.Body, cfg.Name+" is well\n")
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, sets: make(chan change), ended: make(chan struct{}), changed: make(chan struct{})}
	var err error
	if s.traffic, err = traffic.NewServer(traffic.ServerConfig{Name: cfg.Name, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	if cfg.Kind == HTTPS || cfg.TLS {
		if s.cert, err = selfSigned(cmp.Or(cfg.Host, "lab.test")); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Stats counts what a server has seen since it was made.
type Stats struct {
	// Open are the connections that are open now; only TCP counts them.
	Open int64
	// Requests that were valid and answered. Who only connects makes none.
	Requests uint64
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	t := s.traffic.Stats()
	return Stats{Open: t.Open, Requests: s.requests.Load() + t.Frames}
}

// At is where the server listens when it is well.
func (s *Server) At() netip.AddrPort { return s.cfg.At }

// Name is what the server calls itself.
func (s *Server) Name() string { return s.cfg.Name }

// Set changes the behaviour, and returns when the change is done: a dead server's
// port is closed, a well one's open. It waits for Run to have begun, so that
// setting a server well waits until it serves.
func (s *Server) Set(ctx context.Context, b Behaviour) error {
	if err := b.validate(); err != nil {
		return err
	}
	c := change{to: b, done: make(chan error, 1)}
	select {
	case s.sets <- c:
	case <-s.ended:
		return ErrEnded
	case <-ctx.Done():
		return fmt.Errorf("change %s: %w", s.cfg.Name, context.Cause(ctx))
	}
	return <-c.done
}

// Run serves until ctx ends, and then returns nil.
func (s *Server) Run(ctx context.Context) error {
	defer close(s.ended)
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer func() { p.close() }()
	var flap <-chan time.Time
	var ticker *time.Ticker
	stop := func() {
		if ticker != nil {
			ticker.Stop()
		}
		ticker, flap = nil, nil
	}
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return p.close()
		case c := <-s.sets:
			stop()
			if c.to.Mode == Flaps {
				ticker = time.NewTicker(time.Duration(float64(time.Second) / c.to.Rate / 2))
				flap = ticker.C
			}
			p, err = s.turn(ctx, p, c.to)
			c.done <- err
		case <-flap:
			b := Behaviour{Mode: Dead}
			if now, _ := s.behaviour(); now.Mode == Dead {
				b.Mode = Well
			}
			p, err = s.turn(ctx, p, b)
		}
		if err != nil {
			return err
		}
	}
}

// turn brings one behaviour about. One that flaps begins dead.
func (s *Server) turn(ctx context.Context, p *port, to Behaviour) (*port, error) {
	if to.Mode == Flaps {
		to.Mode = Dead
	}
	closed := to.Mode == Dead && s.cfg.Kind != SCTP // what SCTP's kernel says, it says itself
	var err error
	if closed {
		// Before anybody can see the change: a request that hangs must not be
		// answered by a server that dies.
		err, p = p.close(), nil
	}
	s.mu.Lock()
	s.now = to
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.cfg.Logger.Debug("backend changes", "name", s.cfg.Name, "kind", s.cfg.Kind, "mode", to.Mode)
	if !closed && p == nil {
		return s.open(ctx)
	}
	return p, err
}

// behaviour is the one in force, and what is closed when it is no more.
func (s *Server) behaviour() (Behaviour, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

// hang waits while the server hangs.
func (s *Server) hang(ctx context.Context) error {
	for {
		b, changed := s.behaviour()
		if b.Mode != Hangs {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dawdle takes the time a slow server takes for a request.
func (s *Server) dawdle(ctx context.Context) error {
	b, changed := s.behaviour()
	if b.Mode != Slow {
		return ctx.Err()
	}
	t := time.NewTimer(b.Delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// fails says whether requests are to be answered with a failure.
func (s *Server) fails() bool {
	b, _ := s.behaviour()
	return b.Mode == Fails
}

// port is an open port with what serves it.
type port struct {
	cancel context.CancelFunc
	g      errgroup.Group
}

// close ends the serving and closes the port with all its connections. A port
// that is not there is closed.
func (p *port) close() error {
	if p == nil {
		return nil
	}
	p.cancel()
	return p.g.Wait()
}

// open opens the port and serves it.
func (s *Server) open(ctx context.Context) (*port, error) {
	var serve func(context.Context) error
	err := s.cfg.Place.Do(func() (err error) {
		switch s.cfg.Kind {
		case UDP:
			serve, err = s.openUDP()
		case SCTP:
			serve, err = s.openSCTP()
		default:
			serve, err = s.openStream()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s %s of %s: %w", s.cfg.Kind, s.cfg.At, s.cfg.Name, err)
	}
	p := &port{}
	ctx, p.cancel = context.WithCancel(ctx)
	p.g.Go(func() error { return serve(ctx) })
	return p, nil
}
