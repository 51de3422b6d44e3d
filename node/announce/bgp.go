package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// ErrRunning is returned by Run when the speaker runs already.
var ErrRunning = errors.New("bgp speaker runs already")

// BGP announces routes to neighbouring routers, and learns routes from them. It is
// given whole sets: of neighbours by Configure and of routes by Announce, before,
// while or after it runs; a session is touched only if its own parameters change.
//
// No session is opened before Announce was called for the first time: a neighbour
// that kept routes over a restart of this node throws away what it is not told of by
// the first End-of-RIB (RFC 4724, section 4.2), so that has to wait until the routes
// are known. Who has nothing to announce says Announce(ctx, nil).
//
// All methods may be called concurrently.
type BGP struct {
	log    *slog.Logger
	notify func()
	ops    chan func(*bgpRun)

	mu        sync.Mutex
	cfg       BGPConfig // wanted, normal
	routes    routeSet  // wanted
	handed    routeSet  // what the server was given of them
	announced bool      // Announce was called
	graceful  bool      // how Run ends
	done      chan struct{}
	engine    *engine // nil while there is none
	status    map[netip.Addr]PeerStatus
	dirty     bool // what was learned must be looked up again

	learnMu sync.Mutex
	learnt  learning
}

// NewBGP makes a speaker that has no neighbours and announces nothing.
func NewBGP(opts BGPOptions) *BGP {
	b := &BGP{
		log: opts.Logger, notify: opts.Notify, ops: make(chan func(*bgpRun)),
		routes: routeSet{}, status: map[netip.Addr]PeerStatus{},
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.notify == nil {
		b.notify = func() {}
	}
	return b
}

// Configure makes want the whole configuration. While the speaker runs it returns
// when that is done, with the neighbours whose sessions had to be reset for it (see
// Changes). An error of the configuration changes nothing; any other, such as a port
// that is taken, is mended by itself as soon as possible.
func (b *BGP) Configure(ctx context.Context, want BGPConfig) (reset []netip.Addr, err error) {
	if err := want.Validate(); err != nil {
		return nil, fmt.Errorf("configure bgp: %w", err)
	}
	want = want.normal()
	b.mu.Lock()
	b.cfg = want
	b.dirty = true
	b.mu.Unlock()
	var failed error
	if err := b.do(ctx, func(r *bgpRun) { reset, failed = r.apply() }); err != nil {
		return nil, fmt.Errorf("configure bgp: %w", err)
	}
	return reset, failed
}

// Announce makes want the whole set of announced routes. While the speaker runs it
// returns when the difference has been handed to the sessions; routes whose
// attributes changed are replaced in place. An error of the routes changes nothing.
func (b *BGP) Announce(ctx context.Context, want []Route) error {
	set, err := newRouteSet(want)
	if err != nil {
		return fmt.Errorf("announce by bgp: %w", err)
	}
	b.mu.Lock()
	b.routes, b.announced = set, true
	b.dirty = true // own routes are never learned
	b.mu.Unlock()
	var failed error
	err = b.do(ctx, func(r *bgpRun) {
		if !r.engineUp() { // it waits for the first routes, or could not be started
			_, failed = r.apply()
			return
		}
		failed = r.applyRoutes()
	})
	if err != nil {
		return fmt.Errorf("announce by bgp: %w", err)
	}
	return failed
}

// Reset ends the session with a neighbour at once, because something else found
// out that it is gone, and forgets what it said. It is tried again. The neighbour is
// told why if it listens.
func (b *BGP) Reset(peer netip.Addr, why string) {
	_ = b.do(context.Background(), func(r *bgpRun) { r.reset(peer, why) }) // without a run there is no session
}

// Leave says how Run is to end the sessions. Gracefully, neighbours that agreed to
// graceful restart keep the routes for the restart time, because this node goes on
// forwarding. Otherwise, which is the default, they are told that it shuts down, and
// drop the routes at once.
func (b *BGP) Leave(graceful bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.graceful = graceful
}

// do has the run's goroutine do op and waits for it. Without a run nothing is done:
// the next one begins with what is wanted then.
func (b *BGP) do(ctx context.Context, op func(*bgpRun)) error {
	b.mu.Lock()
	done := b.done
	b.mu.Unlock()
	if done == nil {
		return nil
	}
	finished := make(chan struct{})
	select {
	case b.ops <- func(r *bgpRun) { op(r); close(finished) }:
		<-finished // an accepted one is done in any case
		return nil
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Peers tells of all configured neighbours, by address.
func (b *BGP) Peers() []PeerStatus {
	l := b.learning()
	b.mu.Lock()
	cfg, eng, running, announced, handed := b.cfg, b.engine, b.done != nil, b.announced, b.handed
	out := make([]PeerStatus, 0, len(cfg.Peers))
	for _, p := range cfg.Peers {
		s := b.status[p.Address]
		s.Address, s.AS, s.LocalAS = p.Address, p.AS, p.LocalAS
		if s.State == "" {
			s.State = StateIdle
		}
		if s.Error == "" && running {
			s.Error = waiting(p, s.State, cfg.Port, announced)
		}
		out = append(out, s)
	}
	b.mu.Unlock()
	if eng == nil {
		return out
	}
	known := eng.peers(context.Background())
	for i, p := range cfg.Peers {
		s, k := &out[i], known[p.Address]
		s.MessagesIn, s.MessagesOut = k.in, k.out
		s.Received, s.Accepted = l.received[p.Address], l.accepted[p.Address]
		if s.State == StateEstablished {
			s.HoldTime = k.hold
			s.Advertised = handed.count(p.IPv4, p.IPv6)
		}
	}
	return out
}

// waiting says why nothing happens where nothing went wrong.
func waiting(p BGPPeer, state PeerState, port uint16, announced bool) string {
	switch {
	case !announced:
		return "it is not spoken to yet: what to announce is not known"
	case state != StateActive || !p.Passive:
		return ""
	case port == 0:
		return "it is to connect, and this node listens on no port"
	case p.Password != "":
		return "it has not connected: it is out of reach, or its password differs"
	}
	return "it has not connected"
}

// Advertised tells what the neighbours with a session were told, by neighbour and prefix.
func (b *BGP) Advertised() []RouteView {
	b.mu.Lock()
	cfg, eng := b.cfg, b.engine
	var up []BGPPeer
	for _, p := range cfg.Peers {
		if b.status[p.Address].State == StateEstablished {
			up = append(up, p)
		}
	}
	b.mu.Unlock()
	if eng == nil {
		return nil
	}
	var out []RouteView
	for _, p := range up {
		out = append(out, eng.advertised(p)...)
	}
	sortViews(out)
	return out
}

// Received tells what the neighbours said, let in or not, by neighbour and prefix.
// The result is shared: it must not be changed.
func (b *BGP) Received() []RouteView { return b.learning().views }

// Learned tells what the import rules let in, by prefix. The result is shared: it
// must not be changed.
func (b *BGP) Learned() []Learned { return b.learning().learned }

// learning looks up what was learned if anything changed since the last time.
func (b *BGP) learning() learning {
	b.learnMu.Lock()
	defer b.learnMu.Unlock()
	b.mu.Lock()
	if !b.dirty {
		b.mu.Unlock()
		return b.learnt
	}
	b.dirty = false // before looking: what changes meanwhile is looked up the next time
	cfg, eng, own := b.cfg, b.engine, b.routes
	ids := make(map[netip.Addr]netip.Addr, len(b.status))
	for addr, s := range b.status {
		ids[addr] = s.RouterID
	}
	b.mu.Unlock()
	var paths []received
	if eng != nil {
		for _, p := range cfg.Peers {
			paths = append(paths, eng.received(p, ids[p.Address])...)
		}
	}
	left := b.learnt.left
	b.learnt = learn(paths, cfg, own)
	if b.learnt.left > left {
		b.log.Warn("more prefixes are learned by BGP than may be imported", "left_out", b.learnt.left, "limit", cfg.MaxImport)
	}
	return b.learnt
}

// changed notes that something was received or withdrawn.
func (b *BGP) changed() {
	b.mu.Lock()
	before := b.dirty
	b.dirty = true
	b.mu.Unlock()
	if !before {
		b.notify()
	}
}

// setStatus changes what is told of a neighbour.
func (b *BGP) setStatus(peer netip.Addr, change func(*PeerStatus)) {
	b.mu.Lock()
	s := b.status[peer]
	if s.Since.IsZero() {
		s.Since = time.Now()
	}
	change(&s)
	b.status[peer] = s
	b.dirty = true
	b.mu.Unlock()
	b.notify()
}
