package benchtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	connsAtOnce = 32 // connections the client has open at any time
	connWarmUp  = 300 * time.Millisecond
	connGiveUp  = 3 * time.Second // a connection that takes longer counts as failed
)

// connLoop opens a connection, says a byte, hears a byte, closes, and does so
// over and over on connsAtOnce connections: an event loop for one thread.
type connLoop struct {
	p       *poller
	sources []netip.Addr
	target  *unix.SockaddrInet4
	slots   [connsAtOnce]connSlot
	next    int // source of the next connection

	counting bool
	took     []time.Duration
	failed   int
	lastErr  error
}

type connSlot struct {
	fd    int // -1 when not open
	asked bool
	since time.Time
}

func newConnLoop(sources []netip.Addr, target netip.AddrPort) (*connLoop, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	l := &connLoop{p: p, sources: sources, target: sockaddr(target), took: make([]time.Duration, 0, 1<<16)}
	for i := range l.slots {
		l.slots[i].fd = -1
	}
	return l, nil
}

func (l *connLoop) close() {
	for i := range l.slots {
		l.shut(&l.slots[i])
	}
	l.p.close()
}

func (l *connLoop) shut(s *connSlot) {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// open starts the next connection of a slot, in the thread's namespace.
func (l *connLoop) open(i int) error {
	s := &l.slots[i]
	fd, err := socket(unix.SOCK_STREAM | unix.SOCK_NONBLOCK)
	if err != nil {
		return err
	}
	*s = connSlot{fd: fd, since: time.Now()}
	// The port is chosen at connect, when the whole tuple is known: so each
	// source address has all ports for each target.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	from := l.sources[l.next%len(l.sources)]
	l.next++
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(fd, l.target); err != nil && err != unix.EINPROGRESS {
		return os.NewSyscallError("connect", err)
	}
	return l.p.add(fd, int32(i), unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET&0xffffffff)
}

// step deals with what happened on a slot and says whether it is free again.
func (l *connLoop) step(s *connSlot, events uint32) (done bool, err error) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err == nil {
			err = errors.New("closed by the other end")
		}
		return true, err
	}
	if !s.asked && events&unix.EPOLLOUT != 0 {
		s.asked = true
		if _, err := unix.Write(s.fd, []byte{'?'}); err != nil {
			return true, os.NewSyscallError("write", err)
		}
	}
	if events&unix.EPOLLIN == 0 {
		return false, nil
	}
	var b [8]byte
	switch n, err := unix.Read(s.fd, b[:]); {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, nil
	case err != nil:
		return true, os.NewSyscallError("read", err)
	case n == 0:
		return true, errors.New("closed without an answer")
	}
	return true, nil
}

// finish books a connection and opens the next.
func (l *connLoop) finish(i int, now time.Time, err error) error {
	s := &l.slots[i]
	l.shut(s)
	switch {
	case err != nil:
		l.failed++
		l.lastErr = err
	case l.counting:
		l.took = append(l.took, now.Sub(s.since))
	}
	return l.open(i)
}

// runUntil turns the loop until ctx ends or the time is up. The thread must be
// in the client's namespace.
func (l *connLoop) runUntil(ctx context.Context, end time.Time) error {
	for i := range l.slots {
		if l.slots[i].fd < 0 {
			if err := l.open(i); err != nil {
				return err
			}
		}
	}
	for ctx.Err() == nil {
		events, err := l.p.wait()
		if err != nil {
			return err
		}
		for _, ev := range events {
			i := int(ev.Fd)
			if done, err := l.step(&l.slots[i], ev.Events); done {
				if err := l.finish(i, time.Now(), err); err != nil {
					return err
				}
			}
		}
		now := time.Now()
		if err := l.giveUp(now); err != nil {
			return err
		}
		// Only here: an event that was taken and not dealt with never comes again.
		if now.After(end) {
			return nil
		}
	}
	return ctx.Err()
}

// giveUp ends the connections that take too long.
func (l *connLoop) giveUp(now time.Time) error {
	for i := range l.slots {
		if now.Sub(l.slots[i].since) > connGiveUp {
			if err := l.finish(i, now, unix.ETIMEDOUT); err != nil {
				return err
			}
		}
	}
	return nil
}

// conns measures new connections.
func (b *bench) conns(ctx context.Context, p *path) (Sample, error) {
	l, err := newConnLoop(p.sources, netip.AddrPortFrom(p.target, ConnPort))
	if err != nil {
		return Sample{}, err
	}
	defer l.close()
	var m measured
	var g errgroup.Group
	g.Go(func() error {
		return b.client.Do(func() error {
			if err := l.runUntil(ctx, time.Now().Add(connWarmUp)); err != nil {
				return err
			}
			before, err := readCPU()
			if err != nil {
				return err
			}
			l.counting, l.failed = true, 0
			began := time.Now()
			if err := l.runUntil(ctx, began.Add(b.cfg.Window)); err != nil {
				return err
			}
			m.took = time.Since(began)
			after, err := readCPU()
			m.cpu = after.since(before)
			return err
		})
	})
	if err := g.Wait(); err != nil {
		return Sample{}, err
	}
	n := len(l.took)
	if n == 0 && l.failed == 0 {
		return Sample{}, errors.New("no connection came to an end")
	}
	if l.failed > n/100 {
		return Sample{}, fmt.Errorf("%d of %d connections failed, the last: %w", l.failed, l.failed+n, l.lastErr)
	}
	slices.Sort(l.took)
	return Sample{
		Rate:  float64(n) / m.took.Seconds(),
		P50:   l.took[n*50/100],
		P99:   l.took[n*99/100],
		Cost:  float64(m.cpu.busy.Microseconds()) / float64(n),
		Steal: m.stealShare(),
	}, nil
}
