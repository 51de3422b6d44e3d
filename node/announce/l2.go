package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sendRetry is the pause after a frame could not be sent, or a link not be used.
	sendRetry = 500 * time.Millisecond
	// fenceRetry is the pause after the fence was found shut.
	fenceRetry = 100 * time.Millisecond
	// lookEvery is how often Run looks at links that have nothing due.
	lookEvery = time.Second
)

var (
	// ErrClosed is returned by Announce and Run after Close.
	ErrClosed = errors.New("the speaker is closed")
	// ErrAddress is wrapped by Announce for what no host can hold on a link.
	ErrAddress = errors.New("not an address of one host")
)

// L2Config configures an L2 speaker. The zero value is usable.
type L2Config struct {
	// Schedule is when an address is announced, counted from when it became
	// wanted: ascending, none negative. Default 0, 100 ms, 500 ms, 1 s, 5 s. The
	// first is normally 0; then Announce says it before it returns.
	Schedule []time.Duration
	// Every is the distance of the announcements after Schedule. Default 60 s.
	Every time.Duration
	// Fence, if set, is asked before each announcement whether this node may still
	// make it: typically whether its lease on the address is valid at this moment.
	// A process that was stopped and goes on would otherwise repeat a claim it has
	// lost meanwhile. While the answer is no, nothing is sent and the fence is asked
	// again ten times a second; when it opens, the schedule starts from the
	// beginning. It must not block or call the speaker, and may be called from several
	// goroutines.
	Fence func(Advert) bool
	// Router is the Router flag of neighbour advertisements (RFC 4861 section 4.4):
	// whether the links forward IPv6. It must be what the kernel says in its own,
	// which is net.ipv6.conf.LINK.forwarding.
	Router bool
	// Logger defaults to one that discards.
	Logger *slog.Logger
}

// Validate reports everything that is wrong with the configuration.
func (c L2Config) Validate() error {
	var errs []error
	if c.Every < 0 {
		errs = append(errs, fmt.Errorf("announce every %v: must not be negative", c.Every))
	}
	for i, d := range c.Schedule {
		if d < 0 {
			errs = append(errs, fmt.Errorf("announce schedule: %v is negative", d))
		}
		if i > 0 && d <= c.Schedule[i-1] {
			errs = append(errs, fmt.Errorf("announce schedule: %v does not come after %v", d, c.Schedule[i-1]))
		}
	}
	return errors.Join(errs...)
}

// L2 announces addresses on Ethernet links, IPv4 by gratuitous ARP and IPv6 by
// unsolicited neighbour advertisements. Announce says what is new; Run makes the
// repeats and listens for other machines' claims.
// All methods may be called from several goroutines.
type L2 struct {
	cfg    L2Config
	wire   wire
	signal chan struct{} // capacity 1: something has changed for Run

	// io is held while frames go out, so that after Announce has returned nothing
	// is sent that its set does not hold. It is taken before mu.
	io    sync.Mutex
	lanes map[lane]*link // guarded by io

	mu        sync.Mutex
	sched     *schedule
	listeners []listener   // opened, not yet served by Run
	own       map[mac]bool // hardware addresses of the lanes in use
	closed    bool

	sent, sendErrors, fenced, foreign, malformed atomic.Uint64
}

var _ Speaker = (*L2)(nil)

// L2Stats counts since NewL2.
type L2Stats struct {
	Sent          uint64 // frames; an announcement is two of ARP, or one of NDP
	SendErrors    uint64 // announcements put off because of the link or the socket
	Fenced        uint64 // times the fence was found shut
	ForeignClaims uint64 // frames in which another machine calls one of our addresses its own
	Malformed     uint64 // received frames that are not valid ARP or NDP over Ethernet
}

// NewL2 returns a speaker with nothing to say. Sockets are opened when a link is
// first needed, in the network namespace of the thread that calls Announce or Run.
func NewL2(cfg L2Config) (*L2, error) { return newL2(cfg, sockets{}) }

func newL2(cfg L2Config, w wire) (*L2, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(cfg.Schedule) == 0 {
		cfg.Schedule = []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second}
	}
	cfg.Schedule = slices.Clone(cfg.Schedule)
	if cfg.Every == 0 {
		cfg.Every = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &L2{
		cfg:    cfg,
		wire:   w,
		signal: make(chan struct{}, 1),
		lanes:  make(map[lane]*link),
		sched:  newSchedule(cfg.Schedule, cfg.Every),
		own:    make(map[mac]bool),
	}, nil
}

// Announce makes want the whole set. Addresses that are new, on a new link or of
// a new epoch are announced before it returns, and by Run from then on. What could
// not be sent is in the error, and tried again by Run; what is no address of one
// host (ErrAddress) is left out. ctx is looked at before anything is done.
func (l *L2) Announce(ctx context.Context, want []Advert) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var errs []error
	usable := make([]Advert, 0, len(want))
	for _, a := range want {
		a.Addr = a.Addr.Unmap().WithZone("") // frames know no zones; the link is the zone
		if !announceable(a.Addr) {
			errs = append(errs, fmt.Errorf("announce %s on %s: %w", a.Addr, a.Link, ErrAddress))
			continue
		}
		usable = append(usable, a)
	}
	l.io.Lock()
	defer l.io.Unlock()
	now := time.Now()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.sched.want(usable, now)
	inUse := l.sched.lanes(false, now)
	l.mu.Unlock()
	l.keepLanes(inUse)
	errs = append(errs, l.pass(now, false))
	l.wakeRun()
	return errors.Join(errs...)
}

// Again starts the schedule of everything anew: a peer came back, a link came up,
// a partition healed. The frames are sent by Run.
func (l *L2) Again(reason string) {
	l.mu.Lock()
	n := l.sched.restart(nil, time.Now())
	l.mu.Unlock()
	if n > 0 {
		l.cfg.Logger.Info("announcing again", "reason", reason, "vips", n)
		l.wakeRun()
	}
}

// Stats returns the counters.
func (l *L2) Stats() L2Stats {
	return L2Stats{
		Sent: l.sent.Load(), SendErrors: l.sendErrors.Load(), Fenced: l.fenced.Load(),
		ForeignClaims: l.foreign.Load(), Malformed: l.malformed.Load(),
	}
}

// Close stops announcing and closes the sockets; Run ends. A second Close does
// nothing.
func (l *L2) Close() error {
	l.io.Lock()
	defer l.io.Unlock()
	l.mu.Lock()
	l.closed = true
	l.sched.want(nil, time.Now())
	l.mu.Unlock()
	l.keepLanes(nil)
	l.wakeRun()
	return nil
}

// wakeRun has Run look at everything again.
func (l *L2) wakeRun() {
	select {
	case l.signal <- struct{}{}:
	default: // it has not looked yet since the last signal
	}
}
