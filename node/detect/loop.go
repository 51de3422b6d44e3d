package detect

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// loop runs the sessions of one family. One goroutine reads, keeps time and
// sends, so that everything which has arrived is taken in before anything is
// found missing.
type loop struct {
	d  *Driver
	v6 bool

	mu       sync.Mutex
	sock     *receiver // nil before run and after
	sockErr  error     // why there is none
	sessions map[Key]*session
	byDiscr  map[uint32]*session
	waiting  []posted
}

type posted struct {
	key   Key
	event Event
}

// session is a machine and what it takes to send for it.
type session struct {
	key      Key
	cfg      Config
	machine  Machine
	out      *sender
	outErr   error
	retry    time.Time // when to try again to open out
	since    time.Time
	sent     uint64
	received uint64
	heard    time.Time // when the last packet came
	wasUp    bool
	farewell bool // the neighbour's last word was that it takes the session down by decision
}

// reopen is how long after a failure to send another socket is tried.
const reopen = time.Second

func newLoop(d *Driver, v6 bool) *loop {
	return &loop{d: d, v6: v6, sessions: map[Key]*session{}, byDiscr: map[uint32]*session{}}
}

// run serves the sessions until ctx ends. While the port is not to be had, it tries
// again and again: another program may hold it, and let go.
func (l *loop) run(ctx context.Context) error {
	told := ""
	for ctx.Err() == nil {
		sock, err := listen(l.d.opts.Port, l.v6)
		l.mu.Lock()
		l.sock, l.sockErr = sock, err
		l.mu.Unlock()
		switch {
		case err == nil:
			return l.serve(ctx, sock)
		case errors.Is(err, errNoFamily):
			<-ctx.Done()
			return nil
		case err.Error() != told:
			told = err.Error()
			l.d.opts.Logger.Warn("BFD cannot be received", "err", err)
		}
		wait := time.NewTimer(reopen)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
	return nil
}

func (l *loop) serve(ctx context.Context, sock *receiver) error {
	stop := context.AfterFunc(ctx, sock.wake)
	defer stop()
	buf := make([]byte, 512)
	for ctx.Err() == nil {
		l.turn(sock, buf)
	}
	l.goodbye()
	return sock.close()
}

// turn waits for a packet or for what is due first, and does it.
func (l *loop) turn(sock *receiver, buf []byte) {
	in, err := sock.read(buf, l.deadline())
	switch {
	case err == nil:
		l.receive(in, buf, time.Now())
		return
	case !errors.Is(err, os.ErrDeadlineExceeded):
		// A packet that cannot be read is as good as none: the timers go on.
		l.d.opts.Logger.Debug("BFD packet not read", "err", err)
	}
	// This process may have stood still: what came meanwhile counts first.
	now := time.Now()
	sock.drain(buf, func(in inbound) { l.receive(in, buf, now) })
	l.tick(now)
}

// deadline is when something is due; zero: never.
func (l *loop) deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		return time.Unix(1, 0)
	}
	var first time.Time
	for _, s := range l.sessions {
		if at := s.machine.Deadline(); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// receive finds the session of a packet (RFC 5880, 6.8.6; RFC 5881, 3 and 5).
func (l *loop) receive(in inbound, buf []byte, now time.Time) {
	if in.ttl != 255 {
		return // has come further than one hop
	}
	p, err := ParsePacket(buf[:in.n])
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.find(in, p)
	if s == nil {
		return
	}
	s.received++
	s.heard, s.farewell = heardAt(in.at, time.Now(), now), p.State == AdminDown
	l.step(s, Received{p}, now)
}

// maxAge is how long a packet may be said to have waited to be read. The clock of the day can be set between
// the two, so more than that is not believed.
const maxAge = 500 * time.Millisecond

// heardAt is when a packet came that is being read at wall, which is now. A process that comes late to a dead
// neighbour's last packet must not take it for a word that came after the first missing echo.
func heardAt(arrived, wall, now time.Time) time.Time {
	age := wall.Round(0).Sub(arrived)
	if arrived.IsZero() || age < 0 || age > maxAge {
		return now
	}
	return now.Add(-age)
}

func (l *loop) find(in inbound, p Packet) *session {
	if p.YourDiscr != 0 {
		s := l.byDiscr[p.YourDiscr]
		if s == nil || s.key.Remote.WithZone("") != in.from.WithZone("") || s.key.Interface != in.iface {
			return nil
		}
		return s
	}
	for key, s := range l.sessions {
		if key.Remote.WithZone("") == in.from.WithZone("") && key.Interface == in.iface && (!in.to.IsValid() || key.Local.WithZone("") == in.to.WithZone("")) {
			return s
		}
	}
	return nil
}

func (l *loop) tick(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.waiting {
		if s := l.sessions[p.key]; s != nil {
			l.step(s, p.event, now)
		}
	}
	l.waiting = nil
	for _, s := range l.sessions {
		if at := s.machine.Deadline(); !at.IsZero() && !now.Before(at) {
			l.step(s, Tick{}, now)
		}
	}
}

// step lets the machine decide and carries it out. It is called with l.mu held.
func (l *loop) step(s *session, ev Event, now time.Time) {
	var todo []Action
	s.machine, todo = s.machine.Step(ev, now)
	for _, a := range todo {
		switch a := a.(type) {
		case Send:
			l.send(s, a.Packet, now)
		case Change:
			s.since, s.wasUp = now, s.wasUp || a.To == Up
			l.d.opts.Logger.Info("BFD session", "peer", s.key.Remote, "interface", s.key.Interface, "from", a.From, "to", a.To, "diag", a.Diag)
			l.d.opts.Notify(s.key, a)
		}
	}
}

// send opens the session's socket when it is not open: the address or the
// interface may come later than the wish for the session.
func (l *loop) send(s *session, p Packet, now time.Time) {
	if s.out == nil {
		if now.Before(s.retry) {
			return
		}
		if s.out, s.outErr = dial(s.key, l.d.opts.Port); s.outErr != nil {
			s.retry = now.Add(reopen)
			return
		}
	}
	if s.outErr = s.out.send(p.Append(make([]byte, 0, PacketLen))); s.outErr == nil {
		s.sent++
		return
	}
	if !transient(s.outErr) {
		s.out.close()
		s.out, s.retry = nil, now.Add(reopen)
	}
}

// set makes the sessions those of want.
func (l *loop) set(want []Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := make(map[Key]Session, len(want))
	for _, w := range want {
		wanted[w.Key] = w
	}
	now := time.Now()
	for key, s := range l.sessions {
		if _, ok := wanted[key]; !ok {
			l.end(s, now)
		}
	}
	for key, w := range wanted {
		s := l.sessions[key]
		switch {
		case s == nil:
			s = &session{key: key, cfg: w.Config, since: now}
			s.machine = l.begin(w, now)
			s.wasUp = s.machine.SessionState == Up
			l.sessions[key], l.byDiscr[s.machine.LocalDiscr] = s, s
		case s.cfg != w.Config:
			s.cfg = w.Config
			l.step(s, Configure{w.Config}, now)
		}
	}
	l.wakeLocked()
}

// begin is a new machine, or one that goes on where another process has left it.
func (l *loop) begin(w Session, now time.Time) Machine {
	if w.Resume != (Resume{}) && l.d.takeDiscr(w.Resume.Local) {
		return ResumeMachine(w.Config, w.Resume, rand.Uint64(), now)
	}
	return NewMachine(w.Config, l.d.newDiscr(), rand.Uint64(), now)
}

// end says goodbye and forgets a session.
func (l *loop) end(s *session, now time.Time) {
	l.step(s, Admin{Down: true}, now)
	l.drop(s)
}

// drop forgets a session.
func (l *loop) drop(s *session) {
	if s.out != nil {
		s.out.close()
	}
	delete(l.sessions, s.key)
	delete(l.byDiscr, s.machine.LocalDiscr)
	l.d.freeDiscr(s.machine.LocalDiscr)
}

func (l *loop) goodbye() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sessions {
		l.end(s, time.Now())
	}
	l.sock = nil
}

// receiveError is why no packet of this family can be received.
func (l *loop) receiveError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sockErr
}

// post hands an event to a session that is up: those posted mean nothing to another, and
// while there is no socket nobody takes them.
func (l *loop) post(key Key, ev Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[key]; s == nil || s.machine.SessionState != Up {
		return
	}
	l.waiting = append(l.waiting, posted{key, ev})
	l.wakeLocked()
}

func (l *loop) wakeLocked() {
	if l.sock != nil {
		l.sock.wake()
	}
}

func (l *loop) status() []Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Status, 0, len(l.sessions))
	for _, s := range l.sessions {
		st := Status{
			Key: s.key, State: s.machine.SessionState, RemoteState: s.machine.RemoteSessionState, Diag: s.machine.LocalDiag, Since: s.since,
			TxInterval: s.machine.TransmitInterval(), DetectionTime: s.machine.DetectionTime(), RemoteDiscr: s.machine.RemoteDiscr,
			Sent: s.sent, Received: s.received, Heard: s.heard, WasUp: s.wasUp, Farewell: s.farewell,
		}
		if err := errors.Join(l.sockErr, s.outErr); err != nil {
			st.Error = err.Error()
		}
		out = append(out, st)
	}
	return out
}
