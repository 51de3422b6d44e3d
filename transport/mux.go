package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// ALPN names: one per subsystem on the one port. A change to what a subsystem
// speaks that older nodes cannot follow gets a new name.
const (
	ALPNRaft        = "pontoon-raft/1" // the Raft log: hashicorp/raft's own framing
	ALPNAPI         = "pontoon-api/1"  // the HTTP API, forwarded between nodes
	ALPNReplication = "pontoon-repl/1" // flow records
	ALPNJoin        = "pontoon-join/1" // a new node with a token; the only one without a client certificate
	ALPNCA          = "pontoon-ca/1"   // hand-over of the CA key to a new voter
)

const (
	defaultHandshakeTimeout = 5 * time.Second
	defaultDialTimeout      = 3 * time.Second
	defaultMaxHandshakes    = 64
	defaultMaxJoins         = 16

	// acceptRetry is the pause after a failed accept (typically: out of file
	// descriptors), so that the loop neither spins nor gives up.
	acceptRetry = 50 * time.Millisecond
)

// Handler serves one connection and owns it: it must close it. ctx ends with
// Mux.Run, and the connection is closed under the handler at that moment. peer is
// the verified node name, empty on ALPNJoin.
type Handler = func(ctx context.Context, conn net.Conn, peer string)

// MuxConfig says how a Mux is to work.
type MuxConfig struct {
	// Listener accepts the TCP connections; the Mux closes it. When it is nil the
	// Mux listens on Address (host:port) itself.
	Listener net.Listener
	Address  string

	// Identity is this node's key and certificates. Required.
	Identity *Identity

	// Authorize is asked about the other side of every mutually authenticated
	// connection, in and out: is it a member now? It gets the verified name and
	// the SHA-256 of the certificate's SubjectPublicKeyInfo (see Identity.Key),
	// because certificates do not expire with the membership they were made for,
	// and a name may have gone to another machine since. Required. It is called
	// from many goroutines and must not block.
	Authorize func(node string, key [32]byte) error

	// HandshakeTimeout bounds the time from accept to the end of the handshake,
	// and how long an accepted connection waits to be taken from a Listener.
	// Default 5 s.
	HandshakeTimeout time.Duration
	// DialTimeout bounds Dial as a whole, beside its context. Default 3 s.
	DialTimeout time.Duration
	// MaxHandshakes is how many inbound handshakes run at once; more wait in the
	// kernel's queue. Default 64.
	MaxHandshakes int
	// MaxJoins is how many connections without a client certificate may be open
	// at once. Default 16.
	MaxJoins int

	// Logger defaults to one that discards.
	Logger *slog.Logger
}

// Validate reports everything that is wrong with the configuration.
func (c MuxConfig) Validate() error {
	var errs []error
	if c.Listener == nil && c.Address == "" {
		errs = append(errs, errors.New("neither a listener nor an address is given"))
	}
	if c.Identity == nil {
		errs = append(errs, errors.New("no identity is given"))
	}
	if c.Authorize == nil {
		errs = append(errs, errors.New("no Authorize function is given"))
	}
	if c.HandshakeTimeout < 0 || c.DialTimeout < 0 {
		errs = append(errs, errors.New("a timeout is negative"))
	}
	if c.MaxHandshakes < 0 || c.MaxJoins < 0 {
		errs = append(errs, errors.New("a limit is negative"))
	}
	return errors.Join(errs...)
}

func (c MuxConfig) withDefaults() MuxConfig {
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = defaultHandshakeTimeout
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = defaultDialTimeout
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = defaultMaxHandshakes
	}
	if c.MaxJoins == 0 {
		c.MaxJoins = defaultMaxJoins
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Mux owns the one TCP port of a node and tells TLS connections apart by ALPN.
// Register subsystems with Handle and Listen, then call Run once. All methods
// but those two are safe for concurrent use at any time.
type Mux struct {
	cfg   MuxConfig
	ln    net.Listener
	conns connTable

	slots   chan struct{} // handshakes under way
	joins   atomic.Int64  // open connections without a client certificate
	started atomic.Bool
	refused refusals // what was logged of whom

	mu        sync.Mutex
	handlers  map[string]Handler
	listeners map[string]*muxListener
}

// NewMux validates cfg and opens the port. The caller must Run or Close the Mux.
func NewMux(cfg MuxConfig) (*Mux, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure cluster port: %w", err)
	}
	cfg = cfg.withDefaults()
	ln := cfg.Listener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", cfg.Address); err != nil {
			return nil, fmt.Errorf("open cluster port %s: %w", cfg.Address, err)
		}
	}
	return &Mux{
		cfg:       cfg,
		ln:        ln,
		slots:     make(chan struct{}, cfg.MaxHandshakes),
		handlers:  map[string]Handler{},
		listeners: map[string]*muxListener{},
	}, nil
}

// Addr returns the address the port is bound to.
func (m *Mux) Addr() net.Addr { return m.ln.Addr() }

// Handle has h called, in a goroutine of Run, for each connection that speaks
// the given protocol. It must be called before Run, and replaces an earlier
// Handle or Listen for that protocol.
func (m *Mux) Handle(alpn string, h Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.listeners, alpn)
	m.handlers[alpn] = h
}

// Listen returns a listener whose Accept yields the connections that speak the
// given protocol, handshake done. They have a ConnectionState method, from which
// an http.Server fills Request.TLS; PeerOf names their other side. Listen must be
// called before Run, and replaces an earlier Handle or Listen for that protocol.
// Closing it refuses that protocol from then on and leaves the port open. Accept
// returns an error wrapping net.ErrClosed after Close and after the end of Run.
func (m *Mux) Listen(alpn string) net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.handlers, alpn)
	l := newMuxListener(m.ln.Addr())
	m.listeners[alpn] = l
	return l
}

// serves reports whether a subsystem is there for the protocol now.
func (m *Mux) serves(alpn string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l, ok := m.listeners[alpn]; ok {
		return !l.closed()
	}
	return m.handlers[alpn] != nil
}

// Run accepts connections until ctx ends or the port fails. When it returns, the
// port, every listener made by Listen and every connection that was accepted or
// dialled are closed, and every handler has returned. The error is nil when ctx
// ended.
func (m *Mux) Run(ctx context.Context) error {
	if m.started.Swap(true) {
		return errors.New("run cluster port: it runs already or has run")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return m.Close()
	})
	g.Go(func() error { return m.accept(ctx, g) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("run cluster port: %w", err)
	}
	return nil
}

// Close closes the port, the listeners and all connections. It is what Run does
// at its end, and is needed only for a Mux that was never run. It may be called
// more than once.
func (m *Mux) Close() error {
	err := m.ln.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	m.mu.Lock()
	for _, l := range m.listeners {
		_ = l.Close()
	}
	m.mu.Unlock()
	m.conns.closeAll()
	return err
}

// Disconnect closes all live connections with the node of that name and key, in
// both directions; another machine of the same name keeps its own. Called after
// the state that Authorize consults says that the node is gone, it leaves no
// connection behind and none can come up after it.
func (m *Mux) Disconnect(node string, key [32]byte) {
	if n := m.conns.closePeer(peerID{node, key}); n > 0 {
		m.cfg.Logger.Info("closed connections of a node", "node", node, "connections", n)
	}
}

func (m *Mux) accept(ctx context.Context, g *errgroup.Group) error {
	for {
		select {
		case m.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		raw, err := m.ln.Accept()
		if err != nil {
			<-m.slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			m.cfg.Logger.Warn("cannot accept a connection", "err", err)
			if !pause(ctx, acceptRetry) {
				return nil
			}
			continue
		}
		g.Go(func() error {
			m.serve(ctx, raw)
			return nil
		})
	}
}

// serve takes one raw connection through handshake and admission and hands it
// over. It holds a handshake slot until the connection is admitted or refused.
func (m *Mux) serve(ctx context.Context, raw net.Conn) {
	release := sync.OnceFunc(func() { <-m.slots })
	defer release()
	conn, err := m.conns.track(raw)
	if err != nil {
		return // shutting down; track closed it
	}
	s, err := m.handshake(ctx, conn)
	if err != nil {
		_ = conn.Close()
		m.logRefused(raw.RemoteAddr(), s.peer.name, err)
		return
	}
	release()

	m.mu.Lock()
	h, l := m.handlers[s.alpn], m.listeners[s.alpn]
	m.mu.Unlock()
	if l != nil {
		if !l.deliver(ctx, s.conn, m.cfg.HandshakeTimeout) {
			_ = conn.Close()
		}
		return
	}
	h(ctx, s.conn, s.peer.name)
}

// pause waits for d and reports whether ctx is still live.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
