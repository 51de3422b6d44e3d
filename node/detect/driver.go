package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Key says which session is meant: two addresses on one link.
type Key struct {
	Local, Remote netip.Addr
	Interface     string
}

// String is the key as it stands in logs.
func (k Key) String() string { return fmt.Sprintf("%v on %s", k.Remote, k.Interface) }

// Session is a session that is wanted.
type Session struct {
	Key
	Config Config
	Resume Resume // how a session that is begun goes on where another process has left it (see Rest); zero: anew
}

// Validate reports everything that is wrong with a wanted session.
func (s Session) Validate() error {
	var errs []error
	switch {
	case !s.Local.IsValid() || !s.Remote.IsValid():
		errs = append(errs, errors.New("both addresses must be given"))
	case s.Local.Is4() != s.Remote.Is4():
		errs = append(errs, fmt.Errorf("%v and %v are of different families", s.Local, s.Remote))
	case s.Local.Is4In6() || s.Remote.Is4In6():
		errs = append(errs, fmt.Errorf("%v: an IPv4 address is written as such", s.Remote))
	}
	if s.Interface == "" {
		errs = append(errs, errors.New("the interface must be named: a session is about one hop"))
	}
	errs = append(errs, s.Config.Validate())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("session with %v: %w", s.Remote, err)
	}
	return nil
}

// Status is what is known of a session now.
type Status struct {
	Key
	State         State
	RemoteState   State
	Diag          Diag // of this side, since it was last up
	Since         time.Time
	TxInterval    time.Duration // agreed, before jitter
	DetectionTime time.Duration
	RemoteDiscr   uint32
	Sent          uint64
	Received      uint64
	Heard         time.Time // when the last packet came; zero: none did
	WasUp         bool      // it was up at some time
	Farewell      bool      // the neighbour's last word was AdminDown: it stops by decision and has not failed
	Error         string    // why packets cannot be sent or received at present
}

// Options is what a Driver needs. The zero value of a field with a default means the default.
type Options struct {
	// Port control packets are received on and sent to. Default ControlPort; another one is for tests.
	Port uint16
	// Notify is told of every change of state, those of one family one after another, while
	// the sessions are locked: it must not block, nor call the Driver. Default: nobody is told.
	Notify func(Key, Change)
	// Logger gets changes of state. Default: nothing is logged.
	Logger *slog.Logger
}

// Driver runs sessions over UDP (RFC 5881). All methods may be called from any goroutine.
type Driver struct {
	opts  Options
	loops [2]*loop // IPv4, IPv6

	mu     sync.Mutex
	discrs map[uint32]bool // in use, of both families
}

// NewDriver opens nothing yet.
func NewDriver(opts Options) *Driver {
	if opts.Port == 0 {
		opts.Port = ControlPort
	}
	if opts.Notify == nil {
		opts.Notify = func(Key, Change) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Driver{opts: opts, discrs: map[uint32]bool{}}
	d.loops = [2]*loop{newLoop(d, false), newLoop(d, true)}
	return d
}

// Run receives and sends until ctx ends, and then tells the neighbours that
// their sessions go down by decision. A port that another program holds is tried for again every
// second, and the sessions say so meanwhile (Status.Error), as do those of a family this host
// does not speak. It is called once.
func (d *Driver) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range d.loops {
		g.Go(func() error { return l.run(ctx) })
	}
	return g.Wait()
}

// SetSessions gives the whole wanted set. Sessions that are there and wanted go
// on, with new timers where those changed; the neighbours of those that are not
// wanted any more are told so. Of two with one key the last counts. The errors of all
// that cannot be are joined; the others are taken.
func (d *Driver) SetSessions(want []Session) error {
	var errs []error
	var families [2][]Session
	for _, s := range want {
		if err := s.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		s.Config = s.Config.withDefaults()
		at := 0
		if s.Remote.Is6() {
			at = 1
		}
		families[at] = append(families[at], s)
	}
	for i, l := range d.loops {
		l.set(families[i])
	}
	return errors.Join(errs...)
}

// PathFailed takes the session down because its path is known not to forward:
// nothing has to expire then. Unknown keys are ignored.
func (d *Driver) PathFailed(key Key, diag Diag) {
	for _, l := range d.loops {
		l.post(key, PathFailed{diag})
	}
}

// Ask polls the neighbour of a session that is up, so that it is heard at once if it is there:
// Status.Heard tells. Unknown keys are ignored.
func (d *Driver) Ask(key Key) {
	for _, l := range d.loops {
		l.post(key, Ask{})
	}
}

// ReceiveError is why control packets cannot be received at present; nil: they can be.
func (d *Driver) ReceiveError() error {
	var errs []error
	for _, l := range d.loops {
		if err := l.receiveError(); !errors.Is(err, errNoFamily) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Sessions is the state of all sessions, in the order of their keys.
func (d *Driver) Sessions() []Status {
	var out []Status
	for _, l := range d.loops {
		out = append(out, l.status()...)
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(a.Remote.Compare(b.Remote), cmp.Compare(a.Interface, b.Interface), a.Local.Compare(b.Local))
	})
	return out
}

// newDiscr returns a discriminator that is not in use. It is a random number, so
// that one of an earlier life of this process means nothing (RFC 5880, 6.3).
func (d *Driver) newDiscr() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if n := rand.Uint32(); n != 0 && !d.discrs[n] {
			d.discrs[n] = true
			return n
		}
	}
}

// takeDiscr takes a discriminator into use, if it is free.
func (d *Driver) takeDiscr(n uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n == 0 || d.discrs[n] {
		return false
	}
	d.discrs[n] = true
	return true
}

func (d *Driver) freeDiscr(n uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.discrs, n)
}
