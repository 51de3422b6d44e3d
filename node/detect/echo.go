package detect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Path is a way to a neighbour that is to be probed by echoes.
type Path struct {
	Key
	Config EchoConfig
}

// Validate reports everything that is wrong with a wanted path.
func (p Path) Validate() error {
	return errors.Join(Session{Key: p.Key}.Validate(), p.Config.Validate())
}

// Silence is what is known of why probes are not answered.
type Silence string

// The reasons for which a path is down.
const (
	// Answered: it is not.
	Answered Silence = ""
	// Unanswered: probes leave and nothing comes back.
	Unanswered Silence = "unanswered"
	// Refused: the neighbour's kernel says that nothing is there. The machine lives, but
	// its data plane does not send echoes back.
	Refused Silence = "refused"
	// Unsent: this host cannot send, for reasons of its own.
	Unsent Silence = "unsent"
)

// EchoChange is a change of a path's state.
type EchoChange struct {
	To       State // Up or Down
	Why      Silence
	LastGood time.Time // when the last answer came
}

// EchoStatus is what is known of a path now.
type EchoStatus struct {
	Key
	State    State
	Why      Silence
	Since    time.Time
	LastGood time.Time
	Doubted  time.Time // when the first probe since then was found missing; zero: none was
	Rising   bool      // answers came, and never yet enough for Up; see Prober.Rising
	RTT      time.Duration
	Sent     uint64
	Answered uint64
	Error    string // why probes cannot be sent at present
}

// EchoOptions is what an Echoer needs. The zero value of a field with a default means the default.
type EchoOptions struct {
	// Port probes are sent to. Default EchoPort.
	Port uint16
	// Notify is told of every change of state, those of one path one after another. It must
	// not block, nor call the Echoer. Default: nobody is told.
	Notify func(Key, EchoChange)
	// Doubt is told of the first missing probe on a path that is up, before that is known to be a
	// failure: the moment to ask by other means. Like Notify. Default: nobody is told.
	Doubt func(Key)
	// Logger gets changes of state. Default: nothing is logged.
	Logger *slog.Logger
}

// Echoer probes paths by echoes that the neighbours' data planes send back
// (RFC 9747; the packets go to an address of the neighbour and come back from it, so that no
// kernel takes them for forged). All methods may be called from any goroutine.
type Echoer struct {
	opts   EchoOptions
	wanted chan struct{}

	mu    sync.Mutex
	paths map[Key]*path
}

// path is one that is probed.
type path struct {
	cancel  context.CancelFunc // nil before it is started
	started bool

	mu      sync.Mutex
	cfg     EchoConfig
	changed bool // cfg is another one
	status  EchoStatus
}

// NewEchoer opens nothing yet.
func NewEchoer(opts EchoOptions) *Echoer {
	if opts.Port == 0 {
		opts.Port = EchoPort
	}
	if opts.Notify == nil {
		opts.Notify = func(Key, EchoChange) {}
	}
	if opts.Doubt == nil {
		opts.Doubt = func(Key) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Echoer{opts: opts, wanted: make(chan struct{}, 1), paths: map[Key]*path{}}
}

// Run probes until ctx ends. It is called once. It returns nil when ctx ended;
// what a path cannot do is a state of that path.
func (e *Echoer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for {
		e.mu.Lock()
		for key, p := range e.paths {
			if p.started {
				continue
			}
			var pathCtx context.Context
			p.started = true
			pathCtx, p.cancel = context.WithCancel(ctx)
			g.Go(func() error {
				e.probe(pathCtx, key, p)
				return nil
			})
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-e.wanted:
		}
	}
}

// SetPaths gives the whole wanted set. Paths that are there and wanted keep their
// state. The errors of all that cannot be are joined; the others are taken.
func (e *Echoer) SetPaths(want []Path) error {
	var errs []error
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := map[Key]bool{}
	for _, w := range want {
		if err := w.Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		keep[w.Key] = true
		cfg := w.Config.withDefaults()
		if p := e.paths[w.Key]; p != nil {
			p.configure(cfg)
			continue
		}
		e.paths[w.Key] = &path{cfg: cfg, status: EchoStatus{Key: w.Key, State: Down, Why: Unanswered, Since: time.Now()}}
	}
	for key, p := range e.paths {
		if keep[key] {
			continue
		}
		if p.cancel != nil {
			p.cancel()
		}
		delete(e.paths, key)
	}
	select {
	case e.wanted <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// Paths is the state of all paths, in the order of their keys.
func (e *Echoer) Paths() []EchoStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]EchoStatus, 0, len(e.paths))
	for _, p := range e.paths {
		p.mu.Lock()
		out = append(out, p.status)
		p.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b EchoStatus) int {
		return cmp.Or(a.Remote.Compare(b.Remote), cmp.Compare(a.Interface, b.Interface), a.Local.Compare(b.Local))
	})
	return out
}

func (p *path) configure(cfg EchoConfig) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed = p.changed || p.cfg != cfg
	p.cfg = cfg
}

// echoRun is one path's probing. One goroutine reads, keeps time and sends, so
// that every answer which has arrived is taken in before a probe is found missing.
type echoRun struct {
	e      *Echoer
	key    Key
	p      *path
	prober Prober
	out    *echoSocket
	retry  time.Time
	stop   func() bool // takes back that out is closed with the path
	failed bool        // the last probe has not left
	no     time.Time   // when the neighbour's kernel last refused one
	discr  uint32
	cookie uint64
	buf    []byte
}

func (e *Echoer) probe(ctx context.Context, key Key, p *path) {
	p.mu.Lock()
	cfg := p.cfg
	p.changed = false
	p.mu.Unlock()
	r := &echoRun{
		e: e, key: key, p: p, prober: NewProber(cfg, time.Now()),
		discr: rand.Uint32(), cookie: rand.Uint64(), buf: make([]byte, 128),
	}
	defer func() { r.close() }()
	for ctx.Err() == nil {
		r.turn(ctx)
	}
}

func (r *echoRun) close() {
	if r.out != nil {
		r.stop()
		r.out.close()
		r.out = nil
	}
}

// turn waits for an answer or until the next probe is due, and does what follows.
func (r *echoRun) turn(ctx context.Context) {
	if r.out == nil && !r.open(ctx) {
		return
	}
	n, err := r.out.read(r.buf, r.prober.Deadline())
	switch {
	case err == nil:
		r.answer(r.buf[:n], time.Now())
		return
	case errors.Is(err, unix.ECONNREFUSED):
		r.no = time.Now()
		return
	case !errors.Is(err, os.ErrDeadlineExceeded):
		r.close()
		r.retry = time.Now().Add(reopen)
		return
	}
	now := time.Now()
	r.out.drain(r.buf, func(b []byte, err error) {
		if errors.Is(err, unix.ECONNREFUSED) {
			r.no = now
		} else if err == nil {
			r.answer(b, now)
		}
	})
	r.tick(now)
}

// open makes the socket, or waits a while when it cannot be had: the address or
// the interface may come later than the wish for the path.
func (r *echoRun) open(ctx context.Context) bool {
	now := time.Now()
	if now.Before(r.retry) {
		timer := time.NewTimer(r.retry.Sub(now))
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
	}
	out, err := dialEcho(r.key, r.e.opts.Port)
	if err != nil {
		r.retry = time.Now().Add(reopen)
		r.unsent(err, now)
		return false
	}
	r.out, r.stop = out, context.AfterFunc(ctx, out.close)
	return true
}

func (r *echoRun) answer(b []byte, now time.Time) {
	discr, sequence, ok := ParseEcho(b, func(uint32) (uint64, bool) { return r.cookie, true })
	if !ok || discr != r.discr {
		return
	}
	changed := r.prober.Answer(sequence, now)
	r.note(changed, now, func(s *EchoStatus) { s.Answered++ })
}

func (r *echoRun) tick(now time.Time) {
	r.reconfigure(now)
	trusted := r.prober.State() == Up && r.prober.Doubted().IsZero()
	sequence, due, changed := r.prober.Tick(now)
	if trusted && !r.prober.Doubted().IsZero() {
		r.e.opts.Doubt(r.key)
	}
	if changed {
		r.note(true, now, nil)
	}
	if !due {
		return
	}
	err := r.out.send(AppendEcho(r.buf[:0], r.discr, r.cookie, sequence))
	if errors.Is(err, unix.ECONNREFUSED) { // of an earlier probe; this one has not left
		r.no = now
		err = r.out.send(AppendEcho(r.buf[:0], r.discr, r.cookie, sequence))
	}
	if err != nil {
		r.unsent(err, now)
		return
	}
	r.failed = false
	r.note(false, now, func(s *EchoStatus) { s.Sent++; s.Error = "" })
}

// unsent: what is not sent is not answered, and that says something about this host.
func (r *echoRun) unsent(err error, now time.Time) {
	r.failed = true
	changed := false
	if r.out == nil { // nobody else lets the prober's time pass
		_, _, changed = r.prober.Tick(now)
	} else if !transient(err) {
		r.close()
		r.retry = now.Add(reopen)
	}
	r.note(changed, now, func(s *EchoStatus) { s.Error = err.Error() })
}

// refusalLasts is how long a refusal stands for the probes after it: kernels send
// about one a second (Linux: net.ipv4.icmp_ratelimit).
const refusalLasts = 2 * time.Second

// why is the reason for which probes are not answered.
func (r *echoRun) why(now time.Time) Silence {
	switch {
	case r.failed:
		return Unsent
	case now.Sub(r.no) < refusalLasts:
		return Refused
	}
	return Unanswered
}

func (r *echoRun) reconfigure(now time.Time) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if r.p.changed {
		r.prober.Configure(r.p.cfg, now)
		r.p.changed = false
	}
}

// note brings the status up to date and tells of a change.
func (r *echoRun) note(changed bool, now time.Time, more func(*EchoStatus)) {
	r.p.mu.Lock()
	s := &r.p.status
	s.State, s.LastGood, s.Doubted, s.RTT = r.prober.State(), r.prober.LastGood(), r.prober.Doubted(), r.prober.RTT()
	s.Rising = r.prober.Rising()
	if changed {
		s.Since = now
	}
	s.Why = Answered
	if s.State != Up {
		s.Why = r.why(now)
	}
	if more != nil {
		more(s)
	}
	c := EchoChange{To: s.State, Why: s.Why, LastGood: s.LastGood}
	r.p.mu.Unlock()
	if !changed {
		return
	}
	r.e.opts.Logger.Info("path", "peer", r.key.Remote, "interface", r.key.Interface, "to", c.To, "why", string(c.Why))
	r.e.opts.Notify(r.key, c)
}

// String is the change in words.
func (c EchoChange) String() string {
	if c.Why == Answered {
		return c.To.String()
	}
	return fmt.Sprintf("%v: probes are %s", c.To, c.Why)
}
