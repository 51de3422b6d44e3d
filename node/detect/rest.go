package detect

import (
	"context"
	"fmt"
	"time"
)

// A session can rest while its process is replaced by another: the neighbour is told
// that packets come rarely from now on (RFC 5880, 6.8.3), and the next process goes on
// with the same discriminators before that time is over. To the neighbour nothing has
// happened. To take the session down by decision would be the plain way, but there are
// routers that end what depends on a session then, too (against RFC 5882, 4.2).

// Resume is how a session is known to both ends; the zero value is no session.
type Resume struct {
	Local  uint32 `json:"local"`  // this side's discriminator
	Remote uint32 `json:"remote"` // the neighbour's
}

// resumeWait is for how many of the slow intervals a resumed session waits to hear the neighbour.
const resumeWait = 3

// ResumeMachine returns a session that is up and goes on as r says. It polls the
// neighbour at now, so that the intervals of cfg count for both sides again; one that
// is not heard for three seconds is down.
func ResumeMachine(cfg Config, r Resume, seed uint64, now time.Time) Machine {
	m := NewMachine(cfg, r.Local, seed, now)
	m.SessionState, m.RemoteSessionState, m.RemoteDiscr = Up, Up, r.Remote
	m.DesiredMinTxInterval = m.cfg.DesiredMinTx
	m.usedTx, m.usedRx = m.DesiredMinTxInterval, m.RequiredMinRxInterval
	m.polling = true
	m.nextTx, m.detectAt = now, now.Add(resumeWait*SlowInterval)
	return m
}

// resting says whether the neighbour has agreed to hear from this side as rarely as it
// asks for.
func (m Machine) resting() bool {
	return m.SessionState == Up && !m.polling && m.usedTx == m.cfg.DesiredMinTx
}

// Rest asks the neighbours of these sessions, as far as they are up, to wait for span
// for the next packet, and forgets those sessions whose neighbour has agreed, without
// a word. It returns those, by which another process can go on (Session.Resume). It
// waits for the answers until ctx ends at the latest. Rest is for when Run is about to end.
func (d *Driver) Rest(ctx context.Context, keys []Key, span time.Duration) (map[Key]Resume, error) {
	waiting := map[Key]bool{}
	for _, k := range keys {
		for _, l := range d.loops {
			if l.slowDown(k, span) {
				waiting[k] = true
			}
		}
	}
	out := map[Key]Resume{}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		for k := range waiting {
			for _, l := range d.loops {
				if r, ok := l.forget(k); ok {
					out[k] = r
					delete(waiting, k)
				}
			}
		}
		if len(waiting) == 0 {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return out, fmt.Errorf("%d BFD neighbours have not agreed to wait: %w", len(waiting), ctx.Err())
		case <-tick.C:
		}
	}
}

// slowDown begins to agree on an interval by which the neighbour waits for span.
func (l *loop) slowDown(key Key, span time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[key]
	if s == nil || s.machine.SessionState != Up {
		return false
	}
	s.cfg.DesiredMinTx = max(s.cfg.DesiredMinTx, span/time.Duration(s.cfg.DetectMult))
	l.step(s, Configure{s.cfg}, time.Now())
	l.wakeLocked()
	return true
}

// forget drops a session that rests, and says how to go on with it.
func (l *loop) forget(key Key) (Resume, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[key]
	if s == nil || !s.machine.resting() {
		return Resume{}, false
	}
	r := Resume{Local: s.machine.LocalDiscr, Remote: s.machine.RemoteDiscr}
	l.drop(s)
	return r, true
}
