package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options are how a Prober works. The zero value is usable.
type Options struct {
	// Logger: default none.
	Logger *slog.Logger
	// Rate is how many probes this node sends a second at most. Default 20000.
	Rate int
	// Concurrent is how many probes are under way at most; half of the files that the process may have
	// open if that is less. Three quarters of it are for those that the prober's own loop does. Those of
	// https and grpc, which cost a goroutine each, have a quarter: an eighth where the last probe passed
	// or there was none, and an eighth where it failed. None of the three waits for another, and each
	// has one at least. Default 8192.
	Concurrent int
	// Notify is called when the verdict of at least one target has changed: ask Changed for it. It must
	// not block, and is called by the goroutine of Run with no lock held. Default none.
	Notify func()
	// Clock is the clock of the day and of intervals. Default time.Now.
	Clock func() time.Time
}

// Validate reports everything that is wrong.
func (o Options) Validate() error {
	var errs []error
	if o.Rate < 0 || o.Rate > 1_000_000 {
		errs = append(errs, fmt.Errorf("rate must be 1 to 1000000 probes a second, is %d", o.Rate))
	}
	if o.Concurrent < 0 {
		errs = append(errs, fmt.Errorf("concurrent must not be negative, is %d", o.Concurrent))
	}
	if errs != nil {
		return fmt.Errorf("health options: %w", errors.Join(errs...))
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Rate <= 0 {
		o.Rate = 20_000
	}
	if o.Concurrent <= 0 {
		o.Concurrent = 8192
	}
	if files := openFiles(); files > 0 {
		o.Concurrent = max(1, min(o.Concurrent, files/2))
	}
	if o.Notify == nil {
		o.Notify = func() {}
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return o
}

// openFiles is how many files this process may have open; 0: unknown.
func openFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Cur, 1<<20))
}

// Prober probes targets and keeps what it concludes. Its methods may be called at any time by anybody.
type Prober struct {
	opts Options

	mu      sync.Mutex
	board   board
	wanted  []Target // not yet on the board
	pending bool     // wanted is to be taken over
	hurry   []uint32 // targets to be probed next
	wake    func()   // ends the rest of the loop; nil: there is none

	lived time.Duration // by all loops so far: the board's times go on from one to the next

	first, last uint16 // local ports to be avoided
}

// New returns a Prober that probes nothing yet.
func New(o Options) *Prober {
	o = o.withDefaults()
	return &Prober{opts: o, board: newBoard(o.Rate, o.Concurrent, rand.Float64)}
}

// errRunning: Run was called while it was running.
var errRunning = errors.New("run prober: it is running already")

// Run probes until ctx ends, and returns nil then. What was found out stays, for another Run as well.
// Sockets are opened in the network namespace of the thread that Run is called on.
func (p *Prober) Run(ctx context.Context) error {
	l, err := newLoop(p)
	if err != nil {
		return fmt.Errorf("run prober: %w", err)
	}
	p.mu.Lock()
	running := p.wake != nil
	if !running {
		p.wake = l.wake
	}
	p.mu.Unlock()
	if running {
		l.close()
		return errRunning
	}
	defer func() {
		p.mu.Lock()
		p.wake = nil
		p.mu.Unlock()
		l.close()
	}()
	return l.run(ctx)
}

// Want replaces the targets. Those that stay (the same key, address and probe) keep their counters;
// only the newest of several calls in a row is looked at. It does not block, and keeps the slice.
func (p *Prober) Want(targets []Target) {
	p.mu.Lock()
	p.wanted, p.pending = targets, true
	p.mu.Unlock()
	p.rouse()
}

// Settled says whether Results are about the targets of the last Want. A moment after it they may yet be
// about those before, which were asked something else.
func (p *Prober) Settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.pending
}

// ProbeNow asks that these targets be probed next, out of turn, as far as the rate allows. A probe that
// is under way is not repeated. Results tells by At when that is done. It does not block.
func (p *Prober) ProbeNow(keys ...uint32) {
	p.mu.Lock()
	p.hurry = append(p.hurry, keys...)
	p.mu.Unlock()
	p.rouse()
}

// AvoidPorts keeps probes from local ports first to last, both included, from the next probe on; 0 and 0
// is none. They are those that the data plane of this node gives to connections whose source is an address
// of the node: the answer to a probe from such a port could be taken for a packet of a connection.
func (p *Prober) AvoidPorts(first, last uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first, p.last = first, last
}

func (p *Prober) rouse() {
	p.mu.Lock()
	wake := p.wake
	p.mu.Unlock()
	if wake != nil {
		wake()
	}
}

// Results tells what is known about each target, by growing key. Targets that Want has named a moment
// ago may not be there yet.
func (p *Prober) Results() []Result {
	p.mu.Lock()
	keys := p.board.keys
	p.mu.Unlock()
	return p.results(keys)
}

// Result tells what is known about one target.
func (p *Prober) Result(key uint32) (r Result, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.board.wishes[key]
	if !ok {
		return Result{}, false
	}
	return p.board.result(key, w), true
}

// results reads some at a time, so that the loop need not wait for all.
func (p *Prober) results(keys []uint32) []Result {
	all := make([]Result, 0, len(keys))
	for part := range slices.Chunk(keys, 128) {
		p.mu.Lock()
		for _, k := range part {
			if w, ok := p.board.wishes[k]; ok {
				all = append(all, p.board.result(k, w))
			}
		}
		p.mu.Unlock()
	}
	return all
}

// Changed tells the targets whose verdict (Health or Flapping) has changed since the version that an
// earlier call returned, by growing key, and the version now. Version 0 is before everything: all that
// have a verdict other than the one they were given at the start.
func (p *Prober) Changed(since uint64) (changed []Result, version uint64) {
	p.mu.Lock()
	version = p.board.version
	var keys []uint32
	if version > since {
		for _, k := range p.board.keys {
			if w := p.board.wishes[k]; w.version > since || w.check != nil && w.check.version > since {
				keys = append(keys, k)
			}
		}
	}
	p.mu.Unlock()
	return p.results(keys), version
}

// Stats are counts of the whole prober. Those of probes only grow.
type Stats struct {
	Targets  int // that are probed
	Refused  int // targets that cannot be probed: their results say why
	Checks   int // different ones of the targets: what is the same is probed once
	Up       int // checks by what is concluded
	Down     int
	Unknown  int
	Flapping int
	Flying   int // probes under way

	Probes   uint64        // that ended with a verdict
	Failures uint64        // of these
	Void     uint64        // probes that said nothing about the endpoint, because this node was in the way
	Changes  uint64        // of health
	Stalls   uint64        // moments in which this process did not run: nothing is concluded from them
	Late     time.Duration // by how much the newest probe began later than it was due
}

// Stats counts.
func (p *Prober) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.board.stats
	s.Checks, s.Flying = len(p.board.checks), p.board.flying()
	for _, w := range p.board.wishes {
		if w.check == nil {
			s.Refused++
		}
	}
	s.Targets = len(p.board.wishes) - s.Refused
	for _, c := range p.board.checks {
		switch c.machine.health {
		case Up:
			s.Up++
		case Down:
			s.Down++
		default:
			s.Unknown++
		}
		if c.machine.flapping {
			s.Flapping++
		}
	}
	return s
}

// wakeable is a file whose reading can be ended by another goroutine.
type wakeable struct {
	file *os.File

	mu    sync.Mutex // between rest setting its deadline and wake
	woken bool
}

// wake ends a rest, or the next one.
func (w *wakeable) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.woken = true
	_ = w.file.SetReadDeadline(time.Unix(1, 0)) // fails only when it is closed, and then nobody rests
}

// rest sets when the next read ends at the latest; false: it was woken, and is not to rest.
func (w *wakeable) rest(d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.woken {
		w.woken = false
		return false
	}
	return w.file.SetReadDeadline(time.Now().Add(d)) == nil
}
