package announce

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// link is what the speaker knows about one interface. Guarded by L2.io.
type link struct {
	state   linkState
	port    port         // nil while the link cannot be used
	cut     *atomic.Bool // set by the listener: the link went down under the port
	failing string       // why it cannot be used, as logged; "" if it can
}

// listener is an open port that Run shall read.
type listener struct {
	link string
	port port
	cut  *atomic.Bool
}

// pass sends what is due at now. With look it also looks at the links that have
// nothing due. A link that has come back, or has got another index or hardware
// address, has all its schedules started anew. The caller holds io.
func (l *L2) pass(now time.Time, look bool) error {
	l.mu.Lock()
	names := l.sched.links(!look, now)
	l.mu.Unlock()
	failed := make(map[string]error)
	for _, name := range names {
		back, err := l.ready(name)
		if err != nil {
			failed[name] = err
		}
		if back {
			l.mu.Lock()
			l.sched.restart(name, now)
			l.mu.Unlock()
		}
	}
	l.mu.Lock()
	due := l.sched.step(now)
	l.mu.Unlock()
	var errs []error
	for _, a := range due {
		err := failed[a.Link]
		if err == nil {
			err = l.say(a, now)
		}
		if err != nil {
			// The rest of this link's adverts would fail alike: do not wait for each.
			failed[a.Link] = err
			l.sendErrors.Add(1)
			l.hold(a, now.Add(sendRetry))
			errs = append(errs, fmt.Errorf("announce %s: %w", a.Addr, err))
		}
	}
	return errors.Join(errs...)
}

// say sends both forms of one announcement, if the fence lets it.
func (l *L2) say(a Advert, now time.Time) error {
	if l.cfg.Fence != nil && !l.cfg.Fence(a) {
		l.fenced.Add(1)
		l.hold(a, now.Add(fenceRetry))
		return nil
	}
	k := l.links[a.Link]
	var buf [frameLen]byte
	for _, frame := range gratuitous(k.state.hw, a.Addr) {
		if err := k.port.send(frame.append(buf[:0])); err != nil {
			l.fail(a.Link, err)
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

// ready makes sure that the link has a port that fits it as it is now. back says
// that the link was usable earlier, was not for a while or is another one now,
// and is usable again.
func (l *L2) ready(name string) (back bool, err error) {
	k, known := l.links[name]
	state, err := l.wire.lookup(name)
	if err != nil {
		l.fail(name, err)
		return false, err
	}
	if known && k.port != nil && k.state == state {
		return k.cut.CompareAndSwap(true, false), nil
	}
	opened, err := l.wire.open(name, state)
	if err != nil {
		l.fail(name, err)
		return false, err
	}
	if known {
		l.cfg.Logger.Info("link usable", "link", name)
		l.drop(k)
	}
	k = &link{state: state, port: opened, cut: new(atomic.Bool)}
	l.links[name] = k
	l.mu.Lock()
	l.listeners = append(l.listeners, listener{link: name, port: opened, cut: k.cut})
	l.mu.Unlock()
	l.noteOwn()
	return known, nil
}

// fail notes that the link cannot be used and says so when that is new.
func (l *L2) fail(name string, err error) {
	k, known := l.links[name]
	if !known {
		k = &link{}
		l.links[name] = k
	}
	l.drop(k)
	if reason := err.Error(); k.failing != reason {
		k.failing = reason
		l.cfg.Logger.Warn("link unusable for announcements, trying again", "link", name, "err", err)
	}
}

// drop closes the link's port; its listener ends by that.
func (l *L2) drop(k *link) {
	if k.port != nil {
		_ = k.port.close() // nothing is buffered that could be lost
		k.port = nil
	}
}

// keepLinks forgets all links but the named.
func (l *L2) keepLinks(names []string) {
	for name, k := range l.links {
		if !slices.Contains(names, name) {
			l.drop(k)
			delete(l.links, name)
		}
	}
	l.noteOwn()
}

// noteOwn tells the listeners which hardware addresses are ours.
func (l *L2) noteOwn() {
	own := make(map[mac]bool, len(l.links))
	for _, k := range l.links {
		if k.state != (linkState{}) {
			own[k.state.hw] = true
		}
	}
	l.mu.Lock()
	l.own = own
	l.mu.Unlock()
}
