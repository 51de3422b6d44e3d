package announce

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
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
	for _, o := range l.sayAll(due, failed) {
		for _, a := range o.fenced {
			l.fenced.Add(1)
			l.hold(a, now.Add(fenceRetry))
		}
		if o.err != nil && failed[o.on] == nil {
			l.fail(o.on, o.err)
			o.err = fmt.Errorf("link %s: %w", o.on.link, o.err)
		}
		for _, a := range o.unsaid {
			l.sendErrors.Add(1)
			l.hold(a, now.Add(sendRetry))
			errs = append(errs, fmt.Errorf("announce %s: %w", a.Addr, o.err))
		}
	}
	return errors.Join(errs...)
}

// outcome is what became of the announcements that were due on one lane.
type outcome struct {
	on     lane
	fenced []Advert
	unsaid []Advert // because of err
	err    error
}

// sayAll makes the announcements, on all lanes at the same time: each waits for its
// own link only. What failed says beforehand which lanes cannot be used.
func (l *L2) sayAll(due []Advert, failed map[lane]error) []outcome {
	byLane := make(map[lane][]Advert)
	for _, a := range due {
		on := laneOf(a.Addr, a.Link)
		byLane[on] = append(byLane[on], a)
	}
	outcomes := make([]outcome, 0, len(byLane))
	for on := range byLane {
		outcomes = append(outcomes, outcome{on: on, err: failed[on]})
	}
	var group errgroup.Group
	for i := range outcomes {
		o := &outcomes[i]
		if o.err != nil {
			o.unsaid = byLane[o.on]
			continue
		}
		k := l.lanes[o.on]
		group.Go(func() error { l.say(o, k, byLane[o.on]); return nil })
	}
	_ = group.Wait() // what went wrong is in the outcomes
	slices.SortFunc(outcomes, func(a, b outcome) int {
		return cmp.Or(cmp.Compare(a.on.link, b.on.link), cmp.Compare(a.on.proto, b.on.proto))
	})
	return outcomes
}

// say sends the frames of the announcements that the fence lets through. After the
// first that cannot be sent the rest is not tried: it would fail alike.
func (l *L2) say(o *outcome, k *link, due []Advert) {
	for i, a := range due {
		if l.cfg.Fence != nil && !l.cfg.Fence(a) {
			o.fenced = append(o.fenced, a)
			continue
		}
		for _, frame := range o.on.proto.frames(k.state.hw, a.Addr, l.cfg.Router) {
			if o.err = k.port.send(frame); o.err != nil {
				o.unsaid = due[i:]
				return
			}
			l.sent.Add(1)
		}
	}
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
