package announce

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// idle is how long Run sleeps when nothing is wanted; any change wakes it.
const idle = time.Hour

// Run repeats announcements and listens for foreign claims until ctx ends, when
// it returns nil, or the speaker is closed, when it returns ErrClosed. It must run
// once at a time. Its sockets are closed at the end; a later Run opens them again.
func (l *L2) Run(ctx context.Context) error {
	var listeners errgroup.Group
	err := l.repeat(ctx, &listeners) // here, because sockets are opened by this thread
	l.dropAll()
	return errors.Join(err, listeners.Wait())
}

// repeat is Run's loop.
func (l *L2) repeat(ctx context.Context, listeners *errgroup.Group) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	looked := time.Now()
	for {
		l.mu.Lock()
		closed := l.closed
		fresh := l.listeners
		l.listeners = nil
		wake, wanted := l.sched.wake()
		l.mu.Unlock()
		if closed {
			return ErrClosed
		}
		for _, f := range fresh {
			listeners.Go(func() error { l.listen(f); return nil })
		}
		pause := idle
		if wanted {
			pause = min(time.Until(wake), time.Until(looked.Add(lookEvery)))
		}
		timer.Reset(max(pause, 0))
		select {
		case <-ctx.Done():
			return nil
		case <-l.signal:
		case <-timer.C:
		}
		now := time.Now()
		look := now.Sub(looked) >= lookEvery
		if look {
			looked = now
		}
		l.io.Lock()
		_ = l.pass(now, look) // counted, and logged per link when it is new
		l.io.Unlock()
	}
}

// listen reads one port until it is closed.
func (l *L2) listen(f listener) {
	buf := make([]byte, maxNDPFrame)
	for {
		n, err := f.port.receive(buf)
		if errors.Is(err, unix.ENETDOWN) {
			// Told once each time the interface goes down; the socket revives with it.
			f.cut.Store(true)
			continue
		}
		if err != nil {
			l.lost(f, err)
			return
		}
		l.heard(f.lane, buf[:n])
	}
}

// lost gives up a port that cannot be read; the next look opens another. If it
// was the speaker that closed the port, there is nothing to give up.
func (l *L2) lost(f listener, err error) {
	l.io.Lock()
	defer l.io.Unlock()
	if k, ok := l.lanes[f.lane]; ok && k.port == f.port {
		l.fail(f.lane, err)
	}
}

// heard looks for a foreign claim in a received frame: an ARP frame of either
// operation from another machine that has one of our addresses as the sender, a
// neighbour advertisement for it, or a solicitation from it. (A probe, RFC 5227
// section 2.1.1 and RFC 4862 section 5.4, comes from no address and claims nothing
// yet; the kernel answers it.)
func (l *L2) heard(on lane, frame []byte) {
	c, err := on.proto.parse(frame)
	if err != nil {
		l.malformed.Add(1)
		return
	}
	l.mu.Lock()
	if l.own[c.hw] {
		l.mu.Unlock()
		return
	}
	wanted, tell := l.sched.claim(target{addr: c.addr, link: on.link}, time.Now())
	l.mu.Unlock()
	if !wanted {
		return
	}
	l.foreign.Add(1)
	if tell > 0 {
		l.cfg.Logger.Warn("another machine claims a VIP of this node, announcing it again",
			"vip", c.addr, "link", on.link, "mac", net.HardwareAddr(c.hw[:]).String(), "claims", tell)
	}
	l.wakeRun()
}

// dropAll closes all ports at the end of Run, so that the listeners end.
func (l *L2) dropAll() {
	l.io.Lock()
	defer l.io.Unlock()
	l.keepLanes(nil)
	l.mu.Lock()
	l.listeners = nil
	l.mu.Unlock()
}
