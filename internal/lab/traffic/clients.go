package traffic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// DialFunc opens a TCP connection; [lab.Host.Dial] is one.
type DialFunc func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

// ClientsConfig says what long-lived connections are wanted.
type ClientsConfig struct {
	// Dial opens a connection; its result must be a plain socket.
	Dial DialFunc
	// Target is where the connections go.
	Target netip.AddrPort
	// Count is the number of connections, at least 1.
	Count int
	// Interval is the mean time between two frames of a connection, 100 ms
	// when 0. A thousand connections at 100 ms cost about a third of a
	// core, both ends and the network between them included.
	Interval time.Duration
	// Payload is the mean payload of a request in bytes, 64 when 0, at most
	// 512.
	Payload int
	// DialTimeout bounds one attempt to open a connection, 5 s when 0.
	DialTimeout time.Duration
	// Parallel is how many connections are opened at once, 32 when 0.
	Parallel int
	// Progress, if set, is told how many connections are open, by one caller
	// at a time.
	Progress func(open int)
}

func (c ClientsConfig) withDefaults() ClientsConfig {
	if c.Interval == 0 {
		c.Interval = 100 * time.Millisecond
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.Parallel == 0 {
		c.Parallel = 32
	}
	if c.Progress == nil {
		c.Progress = func(int) {}
	}
	return c
}

// minInterval keeps the sender's tick a small part of the interval.
const minInterval = 10 * time.Millisecond

// Validate reports everything that is wrong with the configuration at once.
func (c ClientsConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.Dial == nil {
		errs = append(errs, errors.New("no dial function"))
	}
	if !c.Target.IsValid() {
		errs = append(errs, errors.New("no target"))
	}
	if c.Count < 1 {
		errs = append(errs, fmt.Errorf("%d connections: want at least 1", c.Count))
	}
	if c.Interval < minInterval {
		errs = append(errs, fmt.Errorf("interval %s: want at least %s", c.Interval, minInterval))
	}
	if c.Parallel < 1 || c.DialTimeout < 0 {
		errs = append(errs, errors.New("parallel and dial timeout must be positive"))
	}
	_, err := checkPayloadMean(c.Payload)
	return errors.Join(append(errs, err)...)
}

// Clients is a set of long-lived connections. Open it, then Run it; the other
// methods may be called meanwhile, by anybody.
type Clients struct {
	cfg  ClientsConfig
	base time.Time // times are kept as durations since here

	mu     sync.Mutex
	conns  []*clientConn
	fresh  chan *clientConn // opened, for Run to take up
	nextID atomic.Uint64
}

// NewClients returns a set of connections that is not open yet.
func NewClients(cfg ClientsConfig) (*Clients, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("traffic clients: %w", err)
	}
	cfg = cfg.withDefaults()
	cfg.Payload, _ = checkPayloadMean(cfg.Payload) // validated above
	c := &Clients{cfg: cfg, base: time.Now(), fresh: make(chan *clientConn, cfg.Count)}
	// Ids of different runs differ, so that a connection that ends up with
	// another run's endpoint is seen.
	c.nextID.Store(uint64(rand.Uint32()) << 32)
	return c, nil
}

func (c *Clients) now() time.Duration { return time.Since(c.base) }

// Open opens as many connections as are missing, at first all of them. Each
// has carried one frame there and back when it counts as open. The first that
// fails makes Open fail; those already open stay.
func (c *Clients) Open(ctx context.Context) error {
	missing := c.cfg.Count - c.Alive()
	var (
		g, gctx = errgroup.WithContext(ctx)
		tell    sync.Mutex
		done    = c.cfg.Count - missing
	)
	g.SetLimit(c.cfg.Parallel)
	for range missing {
		g.Go(func() error {
			cc, err := c.openOne(gctx)
			if err != nil {
				return err
			}
			tell.Lock()
			defer tell.Unlock()
			c.add(cc)
			done++
			c.cfg.Progress(done)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("open connection %d of %d to %s: %w", done+1, c.cfg.Count, c.cfg.Target, err)
	}
	return nil
}

// openOne opens one connection and proves it with a first exchange.
func (c *Clients) openOne(ctx context.Context) (*clientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	conn, err := c.cfg.Dial(ctx, c.cfg.Target)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	id := c.nextID.Add(1)
	err = Exchange(conn, id)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	cc, err := newClientConn(id, conn, c.now())
	if err != nil {
		conn.Close()
		return nil, err
	}
	cc.sent, cc.acked = 1, 1
	return cc, nil
}

// add files an open connection, in the place of a lost one if there is any.
func (c *Clients) add(cc *clientConn) {
	defer func() { c.fresh <- cc }() // never full: there are no more than Count
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, old := range c.conns {
		if !old.alive() {
			c.conns[i] = cc
			return
		}
	}
	c.conns = append(c.conns, cc)
}

// Alive counts the connections that have not been lost.
func (c *Clients) Alive() int {
	n := 0
	for _, cc := range c.snapshot() {
		if cc.alive() {
			n++
		}
	}
	return n
}

func (c *Clients) snapshot() []*clientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*clientConn(nil), c.conns...)
}

// Run carries the traffic until ctx ends, then closes all connections and
// returns nil. Lost connections do not end it.
func (c *Clients) Run(ctx context.Context) error {
	var readers errgroup.Group
	c.sendLoop(ctx, &readers)
	for _, cc := range c.snapshot() {
		cc.c.Close()
	}
	return readers.Wait()
}

// sendLoop gives each connection a frame whenever its time has come. One
// goroutine does it for all: a thousand timers would cost more than the
// frames.
func (c *Clients) sendLoop(ctx context.Context, readers *errgroup.Group) {
	tick := time.NewTicker(c.cfg.Interval / 20)
	defer tick.Stop()
	var conns []*clientConn
	scratch := make([]byte, 0, maxFrame)
	for {
		select {
		case <-ctx.Done():
			return
		case cc := <-c.fresh:
			cc.due = c.now() + rand.N(c.cfg.Interval) // spread them out
			conns = append(conns, cc)
			readers.Go(func() error { c.readLoop(ctx, cc); return nil })
			continue
		case <-tick.C:
		}
		now := c.now()
		alive := conns[:0]
		for _, cc := range conns {
			if cc.due <= now {
				var err error
				if scratch, err = cc.send(scratch, c.cfg.Payload); err != nil {
					c.loseUnlessOver(ctx, cc, err)
				}
				cc.due = now + c.cfg.Interval*3/4 + rand.N(c.cfg.Interval/2)
				if !cc.alive() {
					continue
				}
			}
			alive = append(alive, cc)
		}
		conns = alive
	}
}

// readLoop takes the answers of one connection.
func (c *Clients) readLoop(ctx context.Context, cc *clientConn) {
	dec := newDecoder()
	for {
		n, err := cc.c.Read(dec.space())
		if err == nil {
			now := c.now()
			err = dec.filled(n, func(f frame) error { return cc.received(f, now) })
		}
		if err != nil {
			c.loseUnlessOver(ctx, cc, err)
			return
		}
	}
}

// loseUnlessOver notes a loss that is not just the end of the run.
func (c *Clients) loseUnlessOver(ctx context.Context, cc *clientConn, err error) {
	if ctx.Err() == nil {
		cc.lose(err, c.now())
	}
}
