package announce

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// Times between attempts. What is refused in words is tried less and less often;
// what does not answer is asked every second.
const (
	redial     = time.Second
	firstTry   = 20 * time.Millisecond
	reviveMin  = 100 * time.Millisecond
	reviveMax  = 5 * time.Second
	afterLimit = time.Minute
	steady     = 10 * time.Second // a session that lasted for longer is no flapping one
	// taken is by when a connection handed to the server must have led to something.
	taken = 5 * time.Second
)

// session is one neighbour during a run.
type session struct {
	peer    BGPPeer
	state   PeerState // as the server said last
	conn    *watched  // the one handed over last
	busy    bool      // conn was handed over, and did not end yet
	gaveWay bool      // conn was closed for pending
	pending *watched  // accepted while the server could not take it
	dialing bool
	retry   time.Time     // when to dial, in state active; zero: not
	revive  time.Time     // when to make the neighbour anew, in state idle; zero: not
	up      time.Time     // when it was established last
	backoff time.Duration // before the next revival
	limited bool          // it sent too many prefixes, and is not in the server
	kept    bool          // the server keeps its routes and goes on by itself
	closed  bool
	told    string // the neighbour's last reason since it was established
}

func newSession(p BGPPeer) *session { return &session{peer: p, state: StateIdle, backoff: reviveMin} }

// due is when something is to be done; zero is never.
func (s *session) due() time.Time {
	switch {
	case !s.revive.IsZero():
		return s.revive
	case s.state == StateActive && !s.dialing && !s.peer.Passive:
		return s.retry
	}
	return time.Time{}
}

// close lets go of what the session holds.
func (s *session) close() {
	s.closed = true
	if s.pending != nil {
		_ = s.pending.Close()
		s.pending = nil
	}
}

// keep keeps a connection until the server can take it.
func (s *session) keep(conn *watched) {
	if s.pending != nil {
		_ = s.pending.Close()
	}
	s.pending = conn
}

// jittered is d, a fifth more or less, so that two ends do not try at the same times.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// onState takes in a change of state.
func (r *bgpRun) onState(ev stateEvent) {
	s, ok := r.sessions[ev.peer]
	if !ok || ev.serial != r.serial || (ev.state == StateIdle && ev.reason == "") {
		return // that was this node's own doing
	}
	before := s.state
	s.state = ev.state
	switch ev.state {
	case StateActive:
		s.kept, s.busy, s.revive = false, false, time.Time{}
		s.retry = time.Now().Add(time.Duration(rand.Int64N(int64(firstTry))))
		if s.pending != nil {
			conn := s.pending
			s.pending = nil
			r.hand(s, conn)
		}
		r.setStatus(ev.peer, func(st *PeerStatus) { st.State = StateActive })
	case StateEstablished:
		s.up, s.told = time.Now(), ""
		r.setStatus(ev.peer, func(st *PeerStatus) {
			st.State, st.Since, st.Error, st.RouterID = StateEstablished, time.Now(), "", ev.routerID
		})
		r.log.Info("BGP session up", "peer", ev.peer, "as", s.peer.AS, "router_id", ev.routerID)
		r.findHops()
		_ = r.applyRoutes() // tried again
	case StateIdle:
		s.busy = false
		switch {
		case s.gaveWay:
			s.gaveWay, s.revive = false, time.Now()
		case before != StateIdle:
			r.onIdle(s, ev, before == StateEstablished)
		default:
			r.changed() // routes that were kept may have gone
		}
	default:
		r.setStatus(ev.peer, func(st *PeerStatus) { st.State = ev.state })
	}
}

// onIdle takes in the end of a session, or of an attempt at one. GoBGP would rest
// for five seconds and refuse connections meanwhile; a neighbour that is made anew
// can be spoken to at once. That forgets what the neighbour said, so it must not be
// done while its routes are kept for it (RFC 4724, section 4.2) and anybody wants them.
func (r *bgpRun) onIdle(s *session, ev stateEvent, established bool) {
	var e ending
	if s.conn != nil {
		e = s.conn.ending()
	}
	e.established = established
	// Silence is no restart, whatever GoBGP takes it for.
	e.kept = ev.graceful && e.sent == nil && len(r.have.Import) > 0
	words := e.words(s.peer)
	switch {
	case e.got != nil:
		s.told = words
	case e.sent == nil && !established && s.told != "":
		words = s.told // who gave a reason and then hangs up has not changed its mind
	}
	if ev.limit {
		words = notification{code: notifyCease, subcode: 1}.said(s.peer, e) + "; it is tried again in a minute"
	}
	r.down(s, words, established)
	switch {
	case ev.limit:
		s.limited, s.revive = true, time.Now().Add(afterLimit)
		r.forget(s.peer.Address) // what it sent must go as well
	case e.kept:
		s.kept = true
	default:
		if established && time.Since(s.up) > steady {
			s.backoff = reviveMin
		}
		s.revive = time.Now().Add(jittered(s.backoff))
		s.backoff = min(2*s.backoff, reviveMax)
	}
}

// down notes why there is no session, and says it when it is new.
func (r *bgpRun) down(s *session, words string, established bool) {
	fresh := established
	r.setStatus(s.peer.Address, func(st *PeerStatus) {
		fresh = fresh || st.Error != words
		st.State, st.Error = StateIdle, words
		if established {
			st.Flaps++
			st.Since = time.Now()
		}
	})
	switch {
	case established:
		r.log.Warn("BGP session down", "peer", s.peer.Address, "as", s.peer.AS, "why", words)
	case fresh:
		r.log.Warn("BGP session does not come up", "peer", s.peer.Address, "as", s.peer.AS, "why", words)
	}
}

// onTime does what is due.
func (r *bgpRun) onTime(s *session, now time.Time) {
	due := s.due()
	if due.IsZero() || now.Before(due) || !r.engineUp() {
		return
	}
	if !s.revive.IsZero() {
		r.reviveNow(s)
		return
	}
	s.dialing, s.busy = true, false // what was handed over led to nothing
	p := s.peer
	r.setStatus(p.Address, func(st *PeerStatus) { st.State = StateConnect })
	r.group.Go(func() error {
		conn, err := dial(r.ctx, p)
		select {
		case r.dialled <- dialled{to: s, conn: conn, err: err}:
		case <-r.ctx.Done():
			if err == nil {
				_ = conn.Close()
			}
		}
		return nil
	})
}

// reviveNow makes the neighbour anew, if it is still at rest.
func (r *bgpRun) reviveNow(s *session) {
	s.revive = time.Time{}
	addr := s.peer.Address
	told := false // the neighbour dropped the routes because it was told to
	if s.conn != nil {
		e := s.conn.ending()
		told = e.got != nil || e.sent != nil
	}
	if !s.limited {
		if k, ok := r.engine.peers(r.ctx)[addr]; ok {
			if k.state != StateIdle {
				s.state = k.state
				return
			}
			r.forget(addr)
		}
	}
	s.limited, s.state = false, StateIdle
	if err := r.engine.addPeer(r.ctx, s.peer, r.have.RestartTime, !told); err != nil {
		r.log.Warn("cannot make a BGP session anew", "peer", addr, "error", err)
		s.revive = time.Now().Add(startAgain)
	}
}

// onDialled takes in how an attempt to connect ended.
func (r *bgpRun) onDialled(d dialled) {
	s := d.to
	s.dialing = false
	switch {
	case d.err != nil && s.state == StateActive && !s.closed:
		s.retry = time.Now().Add(jittered(redial))
		r.down(s, dialWords(s.peer, d.err), false)
		r.setStatus(s.peer.Address, func(st *PeerStatus) { st.State = StateActive })
	case d.err != nil:
	case s.closed || s.state != StateActive || s.busy:
		_ = d.conn.Close()
	default:
		r.hand(s, d.conn)
	}
}

// onAccepted takes in a connection from a neighbour.
func (r *bgpRun) onAccepted(conn *watched) {
	s, ok := r.sessions[conn.remote()]
	switch {
	case !ok:
		r.log.Debug("refused a BGP connection from no neighbour", "from", conn.remote())
		_ = conn.Close()
	case s.limited, s.peer.Source.IsValid() && s.peer.Source != addrOf(conn.LocalAddr()):
		_ = conn.Close()
	case s.state == StateActive && !s.busy:
		r.hand(s, conn)
	case s.conn != nil && s.conn.collides(conn):
		s.keep(conn)
		s.gaveWay = true
		_ = s.conn.Close()
	case s.state == StateIdle:
		s.keep(conn)
		if !s.revive.IsZero() && s.backoff < time.Second {
			s.revive = time.Now()
		}
	default:
		_ = conn.Close() // one session is enough
	}
}

// hand gives a connection to the server.
func (r *bgpRun) hand(s *session, conn *watched) {
	s.conn, s.busy, s.gaveWay = conn, true, false
	s.retry = time.Now().Add(taken)
	select {
	case r.engine.queue <- conn:
	default:
		_ = conn.Close()
	}
}

// reset ends a session because something else found out that the neighbour is gone.
func (r *bgpRun) reset(addr netip.Addr, why string) {
	s, ok := r.sessions[addr]
	if !ok || !r.engineUp() || s.limited {
		return
	}
	known, ok := r.engine.peers(r.ctx)[addr]
	if !ok {
		return
	}
	if known.state == StateEstablished {
		_ = r.engine.resetPeer(r.ctx, addr, why)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(farewell); time.Now().Before(deadline); <-tick.C {
			if r.engine.peers(r.ctx)[addr].state != StateEstablished {
				break
			}
		}
	}
	r.down(s, why, known.state == StateEstablished)
	r.forget(addr)
	s.close()
	again := newSession(s.peer)
	r.sessions[addr] = again
	if err := r.engine.addPeer(r.ctx, s.peer, r.have.RestartTime, false); err != nil {
		r.log.Warn("cannot make a BGP session anew", "peer", addr, "error", err)
		again.revive = time.Now().Add(startAgain)
	}
}

// listenFor makes the listeners what the configuration wants.
func (r *bgpRun) listenFor(cfg BGPConfig) error {
	port := cfg.Port
	if len(cfg.Peers) == 0 {
		port = 0
	}
	if err := r.listen(port); err != nil {
		return err
	}
	return r.setKeys(cfg)
}

// listen listens on a port, instead of on another; 0 is on none.
func (r *bgpRun) listen(port uint16) error {
	if port == r.port {
		return nil
	}
	for _, l := range r.listeners {
		_ = l.Close()
	}
	r.listeners, r.port, r.keys = nil, 0, map[netip.Addr]string{}
	if port == 0 {
		return nil
	}
	for _, v4 := range []bool{true, false} {
		l, err := listenBGP(r.ctx, v4, port)
		if err != nil && !v4 && noFamily(err) {
			continue
		}
		if err != nil {
			for _, l := range r.listeners {
				_ = l.Close()
			}
			r.listeners = nil
			return err
		}
		r.listeners = append(r.listeners, l)
	}
	r.port = port
	for _, l := range r.listeners {
		r.group.Go(func() error { r.accept(l); return nil })
	}
	return nil
}

// accept takes connections until the listener is closed.
func (r *bgpRun) accept(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !pause(r.ctx, reviveMin) { // out of descriptors, perhaps
				return
			}
			continue
		}
		w, err := watch(conn)
		if err != nil {
			continue
		}
		select {
		case r.accepted <- w:
		case <-r.ctx.Done():
			_ = w.Close()
		}
	}
}

// pause waits, and reports whether ctx still goes on.
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

// setKeys tells the listeners which neighbours sign with which key.
func (r *bgpRun) setKeys(cfg BGPConfig) error {
	if r.port == 0 {
		return nil
	}
	want := map[netip.Addr]string{}
	for _, p := range cfg.Peers {
		if p.Password != "" {
			want[p.Address] = p.Password
		}
	}
	var errs []error
	for addr := range union(want, r.keys) {
		if want[addr] == r.keys[addr] {
			continue
		}
		for _, l := range r.listeners {
			at, ok := l.Addr().(*net.TCPAddr)
			if !ok || (at.IP.To4() != nil) != addr.Is4() {
				continue
			}
			if err := expectKey(l, addr, want[addr]); err != nil {
				errs = append(errs, err)
				want[addr] = r.keys[addr] // tried again
			}
		}
	}
	for addr, key := range want {
		if key == "" {
			delete(want, addr)
		}
	}
	r.keys = want
	return errors.Join(errs...)
}
