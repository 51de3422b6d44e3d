package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// handler is what has a descriptor with the loop.
type handler interface {
	ready(l *loop, events uint32)
}

// kind is how one type of probe is done. It keeps nothing: what it must remember is in the op.
type kind interface {
	// begin sends the first packet; over: that was all, and o is the outcome.
	begin(l *loop, o *op) (out outcome, over bool)
	// ready goes on, when the descriptor that begin opened for the op is ready.
	ready(l *loop, o *op, events uint32) (out outcome, over bool)
	// late is asked when the time is over; not over: there is a new deadline.
	late(l *loop, o *op) (out outcome, over bool)
}

// op is one probe under way.
type op struct {
	check *check
	kind  kind

	fd     int           // its own descriptor, or -1
	begun  time.Time     // by the clock of the day
	stalls uint64        // of the loop's clock when it began
	lost   time.Duration // likewise

	end   time.Duration // of the probe, by the loop's clock
	entry               // when late is asked, at end or before

	stage stage
	rest  []byte // http: still to be written
	read  []byte // http: read so far
	slots *slots // where a shared socket finds it, by slot
	slot  uint16
	path  path   // through a VIP
	token uint32 // of this probe, for answers on a shared socket
}

// stage is how far an op is.
type stage uint8

const (
	stageBegun     stage = iota
	stageConnected       // and asked
	stageResolving       // the neighbour's MAC address is not known yet
)

// loop drives the board with sockets and a clock. All of it but wake and what hand starts belongs to
// the goroutine of run.
type loop struct {
	p     *Prober
	poll  wakeable // an epoll descriptor, which the runtime's poller watches: a rest blocks no thread
	raw   syscall.RawConn
	epfd  int
	clock clock

	handlers  []handler // by descriptor
	deadlines agenda[*op]
	sockets   sockets
	helpers   *helpers
	events    [256]unix.EpollEvent
	buf       []byte        // for what is read right now
	changed   bool          // a verdict, and nobody was told yet
	ports     ports         // of new probes
	warned    time.Duration // when, plus one
}

func newLoop(p *Prober) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else the runtime's poller does not take it
		return nil, errors.Join(fmt.Errorf("open epoll: %w", err), unix.Close(fd))
	}
	l := &loop{p: p, epfd: fd, buf: make([]byte, 64<<10)}
	l.poll.file = os.NewFile(uintptr(fd), "epoll")
	if l.raw, err = l.poll.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("open epoll: %w", err), l.poll.file.Close())
	}
	return l, nil
}

func (l *loop) wake() { l.poll.wake() }

// close gives back what is not the ops'.
func (l *loop) close() {
	l.sockets.close()
	_ = l.poll.file.Close()
}

// run is the loop itself. Answers are taken in before deadlines are looked at.
func (l *loop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	l.helpers = newHelpers(ctx, g, l.wake)
	g.Go(func() error {
		<-ctx.Done()
		l.wake()
		return nil
	})
	l.resume()
	var err error
	for ctx.Err() == nil && err == nil {
		planned := l.start()
		err = l.rest(planned)
		l.clock.advance(l.p.opts.Clock(), planned)
		for _, e := range l.helpers.take() {
			l.finish(e.op, e.outcome)
		}
		l.expire()
		l.tell()
	}
	cancel()
	err = errors.Join(err, g.Wait())
	l.abandon()
	return err
}

// resume lets the clock go on from where the loop before this one left it.
func (l *loop) resume() {
	l.p.mu.Lock()
	l.clock.lived = l.p.lived
	l.p.mu.Unlock()
	l.clock.at, l.ports = l.p.opts.Clock(), kernelPorts()
}

const (
	burst = 128                      // probes that are begun before answers are looked at again
	pause = time.Millisecond         // the loop rests at least so long, unless something is ready
	never = time.Duration(1<<63 - 1) // of an op that a helper ends
)

// start begins the probes that are due, and says for how long nothing is.
func (l *loop) start() (planned time.Duration) {
	for range burst {
		c, wait := l.due()
		if c == nil {
			if len(l.deadlines) > 0 {
				wait = min(wait, l.deadlines.first().due-l.clock.lived)
			}
			return min(max(wait, pause), 2*grace)
		}
		l.begin(c)
	}
	return 0
}

// due asks the board, with what was wanted of it meanwhile.
func (l *loop) due() (*check, time.Duration) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.p.pending {
		l.p.board.want(l.p.wanted, l.clock.lived)
		l.p.wanted, l.p.pending = nil, false
	}
	if len(l.p.hurry) > 0 {
		l.p.board.soon(l.p.hurry, l.clock.lived)
		l.p.hurry = nil
	}
	l.ports.first, l.ports.last = l.p.first, l.p.last
	l.p.board.stats.Stalls = l.clock.stalls
	return l.p.board.next(l.clock.lived)
}

func (l *loop) begin(c *check) {
	o := &op{check: c, fd: -1, end: l.clock.lived + c.probe.Timeout}
	o.due = o.end
	l.stamp(o)
	o.kind = l.kindOf(c)
	out, over := o.kind.begin(l, o)
	if over {
		l.finish(o, out)
		return
	}
	l.deadlines.add(o)
}

// stamp notes when an op begins.
func (l *loop) stamp(o *op) {
	o.begun, o.stalls, o.lost = l.p.opts.Clock(), l.clock.stalls, l.clock.lost
}

func (l *loop) kindOf(c *check) kind {
	if c.vip.IsValid() {
		return pathKind{}
	}
	switch c.probe.Type {
	case TypeTCP:
		return tcpKind{}
	case TypeHTTP:
		return httpKind{}
	case TypeHTTPS:
		return httpsKind{}
	case TypeICMP:
		return icmpKind{}
	case TypeUDP:
		return udpKind{}
	case TypeSCTP:
		return sctpKind{}
	case TypeGRPC:
		return grpcKind{}
	}
	return noKind{}
}

// noKind is what a type that this code does not know is probed with.
type noKind struct{}

func (noKind) begin(_ *loop, o *op) (outcome, bool) {
	return void("probes of type %v are not known here", o.check.probe.Type), true
}
func (noKind) ready(*loop, *op, uint32) (outcome, bool) { return outcome{}, false }
func (noKind) late(*loop, *op) (outcome, bool)          { return outcome{}, true }

// watch lets h know when fd becomes ready.
func (l *loop) watch(fd int, events uint32, h handler) error {
	return l.add(fd, events|unix.EPOLLET, h)
}

// share lets h know as long as there is something to read.
func (l *loop) share(fd int, h handler) error { return l.add(fd, unix.EPOLLIN, h) }

func (l *loop) add(fd int, events uint32, h handler) error {
	e := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("watch socket: %w", err)
	}
	for len(l.handlers) <= fd {
		l.handlers = append(l.handlers, nil)
	}
	l.handlers[fd] = h
	return nil
}

// rest waits until something is ready, d has passed, or it is woken, and lets all that is ready go on.
func (l *loop) rest(d time.Duration) error {
	n, err := l.look()
	if n == 0 && err == nil && d > 0 && l.poll.rest(d) {
		waited := l.raw.Read(func(uintptr) bool {
			n, err = l.look()
			return n > 0 || err != nil
		})
		if waited != nil && !errors.Is(waited, os.ErrDeadlineExceeded) {
			err = errors.Join(err, waited)
		}
	}
	// Once more although the time is over: after a pause the answers and the deadlines are there together.
	if n == 0 && err == nil {
		n, err = l.look()
	}
	for n > 0 && err == nil {
		l.serve(l.events[:n])
		if n < len(l.events) {
			break
		}
		n, err = l.look()
	}
	if err != nil {
		return fmt.Errorf("wait for sockets: %w", err)
	}
	return nil
}

// serve lets what is ready go on. None of them opens a descriptor, so a number names the same one
// through all of the events.
func (l *loop) serve(events []unix.EpollEvent) {
	for _, e := range events {
		if h := l.handlers[e.Fd]; h != nil {
			h.ready(l, e.Events)
		}
	}
}

// look takes what is ready without waiting.
func (l *loop) look() (n int, err error) {
	for {
		n, err = unix.EpollWait(l.epfd, l.events[:], 0)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// ready is handler's.
func (o *op) ready(l *loop, events uint32) {
	if out, over := o.kind.ready(l, o, events); over {
		l.finish(o, out)
	}
}

// expire ends what has had its time.
func (l *loop) expire() {
	for len(l.deadlines) > 0 && l.deadlines.first().due <= l.clock.lived {
		o := l.deadlines.first()
		out, over := o.kind.late(l, o)
		if over || o.due <= l.clock.lived {
			l.finish(o, out)
		}
	}
}

// release gives back what an op holds.
func (l *loop) release(o *op) {
	l.deadlines.remove(o)
	if o.fd >= 0 {
		if o.fd < len(l.handlers) {
			l.handlers[o.fd] = nil
		}
		_ = unix.Close(o.fd) // nothing was written that could still be lost
		o.fd = -1
	}
	if o.slots != nil {
		o.slots.free(o.slot)
		o.slots = nil
	}
}

func (l *loop) finish(o *op, out outcome) {
	l.release(o)
	if out.late && l.clock.lost-o.lost > o.check.probe.Timeout/2 { // a helper's clock goes on while this process stands still
		out = outcome{void: true, again: true}
	}
	l.warn(o.check, out)
	now := l.p.opts.Clock()
	if out.passed && out.took == 0 && o.stalls == l.clock.stalls {
		out.took = max(now.Sub(o.begun), time.Microsecond)
	}
	l.p.mu.Lock()
	changed := l.p.board.finish(o.check, out, l.clock.lived, now.UTC())
	l.p.mu.Unlock()
	l.changed = l.changed || changed
}

// warnEvery is how often at most it is said that this node cannot probe.
const warnEvery = time.Minute

// warn says that probes cannot be sent from here: endpoints that are not probed look well for ever.
func (l *loop) warn(c *check, out outcome) {
	if !out.void || out.again || l.warned > 0 && l.clock.lived-l.warned < warnEvery {
		return
	}
	l.warned = l.clock.lived + 1
	l.p.opts.Logger.Warn("endpoint cannot be probed", "endpoint", c.addr, "probe", c.probe.Type, "err", out.why)
}

// tell says that verdicts have changed, once for all of a round.
func (l *loop) tell() {
	if l.changed {
		l.changed = false
		l.p.opts.Notify()
	}
}

// abandon takes back all that is under way, and leaves the time to the next loop.
func (l *loop) abandon() {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.p.lived = l.clock.lived
	for len(l.deadlines) > 0 {
		o := l.deadlines.first()
		l.release(o)
		l.p.board.abandon(o.check, l.clock.lived)
	}
}
