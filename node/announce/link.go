package announce

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// link is what the speaker knows about one lane. Guarded by L2.io.
type link struct {
	state   linkState
	port    port         // nil while the link cannot be used
	cut     *atomic.Bool // set by the listener: the link went down under the port
	failing string       // why it cannot be used, as logged; "" if it can
}

// listener is an open port that Run shall read.
type listener struct {
	lane lane
	port port
	cut  *atomic.Bool
}

// pass sends what is due at now. With look it also looks at the lanes that have
// nothing due. A link that has come back, or has got another index or hardware
// address, has all its schedules started anew. The caller holds io.
func (l *L2) pass(now time.Time, look bool) error {
	l.mu.Lock()
	lanes := l.sched.lanes(!look, now)
	l.mu.Unlock()
	failed := make(map[lane]error)
	for _, on := range lanes {
		back, err := l.ready(on)
		if err != nil {
			failed[on] = err
		}
		if back {
			l.mu.Lock()
			l.sched.restart(&on, now)
			l.mu.Unlock()
		}
	}
	l.mu.Lock()
	due := l.sched.step(now)
	l.mu.Unlock()
	var errs []error
	for _, a := range due {
		on := laneOf(a.Addr, a.Link)
		err := failed[on]
		if err == nil {
			err = l.say(a, now)
		}
		if err != nil {
			// The rest of this lane's adverts would fail alike: do not wait for each.
			failed[on] = err
			l.sendErrors.Add(1)
			l.hold(a, now.Add(sendRetry))
			errs = append(errs, fmt.Errorf("announce %s: %w", a.Addr, err))
		}
	}
	return errors.Join(errs...)
}

// say sends the frames of one announcement, if the fence lets it.
func (l *L2) say(a Advert, now time.Time) error {
	if l.cfg.Fence != nil && !l.cfg.Fence(a) {
		l.fenced.Add(1)
		l.hold(a, now.Add(fenceRetry))
		return nil
	}
	on := laneOf(a.Addr, a.Link)
	k := l.lanes[on]
	for _, frame := range on.proto.frames(k.state.hw, a.Addr, l.cfg.Router) {
		if err := k.port.send(frame); err != nil {
			l.fail(on, err)
			return fmt.Errorf("link %s: %w", a.Link, err)
		}
		l.sent.Add(1)
	}
	return nil
}

func (l *L2) hold(a Advert, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sched.hold(a, until)
}

// ready makes sure that the lane has a port that fits its link as it is now. back
// says that the link was usable earlier, was not for a while or is another one
// now, and is usable again.
func (l *L2) ready(on lane) (back bool, err error) {
	k, known := l.lanes[on]
	state, err := l.wire.lookup(on.link)
	if err != nil {
		l.fail(on, err)
		return false, err
	}
	if known && k.port != nil && k.state == state {
		return k.cut.CompareAndSwap(true, false), nil
	}
	opened, err := l.wire.open(on, state)
	if err != nil {
		l.fail(on, err)
		return false, err
	}
	if known {
		l.cfg.Logger.Info("link usable", "link", on.link, "protocol", on.proto)
		l.drop(k)
	}
	k = &link{state: state, port: opened, cut: new(atomic.Bool)}
	l.lanes[on] = k
	l.mu.Lock()
	l.listeners = append(l.listeners, listener{lane: on, port: opened, cut: k.cut})
	l.mu.Unlock()
	l.noteOwn()
	return known, nil
}

// fail notes that the lane cannot be used and says so when that is new.
func (l *L2) fail(on lane, err error) {
	k, known := l.lanes[on]
	if !known {
		k = &link{}
		l.lanes[on] = k
	}
	l.drop(k)
	if reason := err.Error(); k.failing != reason {
		k.failing = reason
		l.cfg.Logger.Warn("link unusable for announcements, trying again", "link", on.link, "protocol", on.proto, "err", err)
	}
}

// drop closes the lane's port; its listener ends by that.
func (l *L2) drop(k *link) {
	if k.port != nil {
		_ = k.port.close() // nothing is buffered that could be lost
		k.port = nil
	}
}

// keepLanes forgets all lanes but those in use.
func (l *L2) keepLanes(inUse []lane) {
	for on, k := range l.lanes {
		if !slices.Contains(inUse, on) {
			l.drop(k)
			delete(l.lanes, on)
		}
	}
	l.noteOwn()
}

// noteOwn tells the listeners which hardware addresses are ours.
func (l *L2) noteOwn() {
	own := make(map[mac]bool, len(l.lanes))
	for _, k := range l.lanes {
		if k.state != (linkState{}) {
			own[k.state.hw] = true
		}
	}
	l.mu.Lock()
	l.own = own
	l.mu.Unlock()
}
