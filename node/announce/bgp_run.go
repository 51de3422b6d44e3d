package announce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// startAgain is how long to wait before a server or a listener that could not be
	// started is tried again.
	startAgain = time.Second
	// bgpLookEvery is how often the sessions are compared with what GoBGP says of them.
	bgpLookEvery = 3 * time.Second
)

// bgpRun is one run of the speaker. Everything in it belongs to its one goroutine.
type bgpRun struct {
	*BGP
	group *errgroup.Group
	ctx   context.Context // of dialling and listening; ends before the sessions do

	have     BGPConfig // what sessions were made from
	serial   int       // of the engine
	told     routeSet  // what the engine was told to announce
	hops     nextHops
	sessions map[netip.Addr]*session

	port      uint16
	listeners []*net.TCPListener
	keys      map[netip.Addr]string // of TCP MD5 signatures the listeners expect
	again     time.Time             // when to apply again what failed; zero: nothing did
	failure   string

	states   chan stateEvent
	dialled  chan dialled
	accepted chan *watched
}

// dialled is how an attempt to connect ended.
type dialled struct {
	to   *session
	conn *watched
	err  error
}

// Run speaks until ctx ends, when it ends the sessions as Leave said and returns
// nil. It must run once at a time; what was wanted is kept for the next run.
func (b *BGP) Run(ctx context.Context) error {
	b.mu.Lock()
	if b.done != nil {
		b.mu.Unlock()
		return ErrRunning
	}
	done := make(chan struct{})
	b.done = done
	b.mu.Unlock()

	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	r := &bgpRun{
		BGP: b, group: &group, ctx: inner, told: routeSet{}, keys: map[netip.Addr]string{}, sessions: map[netip.Addr]*session{},
		states: make(chan stateEvent), dialled: make(chan dialled), accepted: make(chan *watched),
	}
	if _, err := r.apply(); err != nil {
		b.log.Warn("cannot start BGP, trying again", "error", err)
	}
	r.loop(ctx)
	cancel()

	b.mu.Lock()
	graceful := b.graceful
	b.mu.Unlock()
	_ = r.listen(0) // closing cannot fail
	r.stopEngine(graceful, "this node stops speaking BGP")
	b.mu.Lock()
	b.done = nil
	b.status = map[netip.Addr]PeerStatus{}
	b.mu.Unlock()
	close(done)
	return group.Wait()
}

// loop does what is asked for and what is due.
func (r *bgpRun) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := time.Now().Add(bgpLookEvery)
	for {
		due := look
		if !r.again.IsZero() && r.again.Before(due) {
			due = r.again
		}
		for _, s := range r.sessions {
			if t := s.due(); !t.IsZero() && t.Before(due) {
				due = t
			}
		}
		timer.Reset(max(time.Until(due), 0))
		select {
		case <-ctx.Done():
			return
		case op := <-r.ops:
			op(r)
		case ev := <-r.states:
			r.onState(ev)
		case d := <-r.dialled:
			r.onDialled(d)
		case conn := <-r.accepted:
			r.onAccepted(conn)
		case <-timer.C:
		}
		now := time.Now()
		if !r.again.IsZero() && !now.Before(r.again) {
			_, _ = r.apply() // logged when it is new
		}
		for _, s := range r.sessions {
			r.onTime(s, now)
		}
		if !now.Before(look) {
			r.look()
			look = now.Add(bgpLookEvery)
		}
	}
}

// apply makes the sessions what they are wanted to be. What fails is tried again.
func (r *bgpRun) apply() (reset []netip.Addr, err error) {
	r.mu.Lock()
	want, known := r.cfg, r.announced
	r.mu.Unlock()
	r.again = time.Time{}
	if !known {
		return nil, nil
	}
	changes := Changes(r.have, want)
	for _, c := range changes {
		if _, had := r.sessions[c.Peer]; had && c.Action == PeerReset {
			reset = append(reset, c.Peer)
		}
	}
	if r.engineUp() && (len(want.Peers) == 0 || serverChange(r.have, want) != "") {
		r.stopEngine(false, "this node's BGP configuration changed")
	}
	for _, c := range changes {
		if c.Action != PeerAdded {
			r.drop(c.Peer, c)
		}
	}
	r.have = want
	if len(want.Peers) > 0 && !r.engineUp() {
		err = r.start()
	}
	err = errors.Join(err, r.listenFor(want))
	if r.engineUp() {
		r.findHops()
		err = errors.Join(err, r.applyRoutes(), r.applyPeers())
	}
	r.failed(err)
	return reset, err
}

// failed has what failed tried again, and says so when it is new.
func (r *bgpRun) failed(err error) {
	if err == nil {
		r.failure = ""
		return
	}
	r.again = time.Now().Add(startAgain)
	if text := err.Error(); text != r.failure {
		r.failure = text
		r.log.Warn("BGP is not as configured yet, trying again", "error", err)
	}
}

func (r *bgpRun) engineUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine != nil
}

// start starts the server.
func (r *bgpRun) start() error {
	r.serial++
	serial := r.serial
	eng, err := startEngine(r.group, r.have, r.log, func(ev stateEvent) {
		ev.serial = serial
		select {
		case r.states <- ev:
		case <-r.ctx.Done():
		}
	}, r.changed)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.engine, r.handed = eng, routeSet{}
	r.mu.Unlock()
	r.told = routeSet{}
	return nil
}

// stopEngine ends all sessions.
func (r *bgpRun) stopEngine(graceful bool, why string) {
	r.mu.Lock()
	eng := r.engine
	r.engine = nil
	r.dirty = true
	r.mu.Unlock()
	if eng == nil {
		return
	}
	eng.stop(context.Background(), graceful, why)
	for _, s := range r.sessions {
		s.close()
	}
	clear(r.sessions)
}

// findHops looks for own addresses to name as next hops where a session runs over
// the other family.
func (r *bgpRun) findHops() {
	var hops nextHops
	for _, p := range r.have.Peers {
		if p.IPv4 && p.Address.Is6() && !hops.v4.IsValid() {
			hops.v4 = addressTowards(p, true)
		}
		if p.IPv6 && p.Address.Is4() && !hops.v6.IsValid() {
			hops.v6 = addressTowards(p, false)
		}
	}
	if hops != r.hops {
		r.hops = hops
		r.told = r.told.unsure() // announced anew, with them
	}
}

// applyRoutes hands what differs to the sessions.
func (r *bgpRun) applyRoutes() error {
	if !r.engineUp() {
		return nil
	}
	r.mu.Lock()
	want := r.routes
	r.mu.Unlock()
	add, gone := want.diff(r.told)
	if len(add) == 0 && len(gone) == 0 {
		return nil
	}
	if err := r.engine.announce(add, r.hops, gone); err != nil {
		r.told = routeSet(union(r.told, want)).unsure() // all of it the next time, and what was given before counts
		err = fmt.Errorf("announce by bgp: %w", err)
		r.failed(err)
		return err
	}
	r.told = want
	r.handOver(want)
	return nil
}

// handOver notes what the server has been given, and with it each neighbour with a session.
func (r *bgpRun) handOver(routes routeSet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handed = routes
}

// applyPeers makes sessions for neighbours that have none.
func (r *bgpRun) applyPeers() error {
	var errs []error
	for _, p := range r.have.Peers {
		s, ok := r.sessions[p.Address]
		if ok {
			errs = append(errs, r.newLimit(s, p))
			continue
		}
		if err := r.engine.addPeer(r.ctx, p, r.have.RestartTime, true); err != nil {
			errs = append(errs, err)
			continue
		}
		r.sessions[p.Address] = newSession(p)
		r.setStatus(p.Address, func(s *PeerStatus) { s.State = StateIdle })
	}
	return errors.Join(errs...)
}

// newLimit changes how many prefixes a neighbour may send. One that sent too many
// gets another chance.
func (r *bgpRun) newLimit(s *session, p BGPPeer) error {
	if s.peer.MaxPrefixes == p.MaxPrefixes {
		return nil
	}
	s.peer = p
	if s.limited {
		s.revive = time.Now()
		return nil
	}
	return r.engine.setLimit(r.ctx, p, r.have.RestartTime)
}

// drop takes a neighbour away, for good or to be made anew.
func (r *bgpRun) drop(addr netip.Addr, c PeerChange) {
	s, ok := r.sessions[addr]
	if ok {
		delete(r.sessions, addr)
		if c.Quiet && s.conn != nil {
			_ = s.conn.Close() // before the server can say Cease
		}
		if r.engineUp() {
			r.forget(addr)
		}
		s.close()
	}
	if c.Action == PeerRemoved {
		r.mu.Lock()
		delete(r.status, addr)
		r.dirty = true
		r.mu.Unlock()
		r.log.Info("BGP session removed", "peer", addr)
		r.notify()
		return
	}
	r.setStatus(addr, func(st *PeerStatus) {
		if st.State == StateEstablished {
			st.Since = time.Now()
		}
		st.State, st.Error = StateIdle, "its session was reset: "+c.Why
	})
	r.log.Info("BGP session reset", "peer", addr, "why", c.Why)
}

// forget takes a neighbour and what it said out of the server.
func (r *bgpRun) forget(addr netip.Addr) {
	_ = r.engine.removePeer(r.ctx, addr) // fails only when it is gone
	r.changed()
}

// look compares the sessions with what the server says, in case a change of state
// went unseen, and the next hops with the addresses there are.
func (r *bgpRun) look() {
	if !r.engineUp() || len(r.sessions) == 0 {
		return
	}
	r.findHops()        // an address may have come, or gone
	_ = r.applyRoutes() // tried again
	known := r.engine.peers(r.ctx)
	for addr, s := range r.sessions {
		if k, ok := known[addr]; ok && k.state != s.state && k.state != StateIdle {
			s.state = k.state
			r.setStatus(addr, func(st *PeerStatus) { st.State = k.state })
		} else if ok && k.state == StateIdle && s.revive.IsZero() && !s.kept {
			s.revive = time.Now()
		}
	}
}
