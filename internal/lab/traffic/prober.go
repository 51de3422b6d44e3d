package traffic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// ProberConfig says how fresh connections are tried.
type ProberConfig struct {
	// Dial opens a connection.
	Dial DialFunc
	// Target is where the connections go.
	Target netip.AddrPort
	// Interval is the time between the beginnings of two probes, 50 ms when 0.
	Interval time.Duration
	// Timeout bounds one probe, 1 s when 0.
	Timeout time.Duration
}

func (c ProberConfig) withDefaults() ProberConfig {
	if c.Interval == 0 {
		c.Interval = 50 * time.Millisecond
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	return c
}

// Validate reports everything that is wrong with the configuration at once.
func (c ProberConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.Dial == nil {
		errs = append(errs, errors.New("no dial function"))
	}
	if !c.Target.IsValid() {
		errs = append(errs, errors.New("no target"))
	}
	if c.Interval < time.Millisecond || c.Timeout < time.Millisecond {
		errs = append(errs, errors.New("interval and timeout must be at least 1ms"))
	}
	return errors.Join(errs...)
}

// ProbeResult is what the probes that ended in a window found.
type ProbeResult struct {
	OK, Failed int
	// Outage is the longest time between two successes in a row, counted
	// from the beginning of the window and up to its end.
	Outage time.Duration
	// LastError is why the newest failure failed, "" without one; LastFailed is when the one of the
	// failed probes began that began last.
	LastError  string
	LastFailed time.Time
}

// Prober opens a fresh connection at every interval, does one exchange and
// closes it: what a new customer of the service meets. It is safe for
// concurrent use.
type Prober struct {
	cfg  ProberConfig
	base time.Time
	ids  uint64 // high half of the connection ids

	mu     sync.Mutex
	result ProbeResult
	last   time.Duration // the newest success, or the begin of the window
	recent []probe       // the newest finished probes, for Succeeding
}

// maxRecent is how many finished probes are remembered, at least half of it.
const maxRecent = 512

// probe is one that ended.
type probe struct {
	began time.Duration
	err   error
}

// NewProber returns a prober that is not running yet.
func NewProber(cfg ProberConfig) (*Prober, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("traffic prober: %w", err)
	}
	return &Prober{cfg: cfg.withDefaults(), base: time.Now(), ids: uint64(rand.Uint32()|1<<31) << 32}, nil
}

func (p *Prober) now() time.Duration { return time.Since(p.base) }

// Run probes until ctx ends and then returns nil. A probe that takes long
// does not delay the next.
func (p *Prober) Run(ctx context.Context) error {
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	var probes errgroup.Group
	for id := p.ids; ; id++ {
		select {
		case <-tick.C:
			probes.Go(func() error { p.once(ctx, id); return nil })
		case <-ctx.Done():
			return probes.Wait()
		}
	}
}

// once makes one probe and files its outcome.
func (p *Prober) once(ctx context.Context, id uint64) {
	began := p.now()
	err := p.try(ctx, id)
	if ctx.Err() != nil {
		return // the end of the run is nobody's failure
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.recent) >= maxRecent {
		p.recent = append(p.recent[:0], p.recent[maxRecent/2:]...)
	}
	p.recent = append(p.recent, probe{began: began, err: err})
	if err != nil {
		p.result.Failed++
		p.result.LastError = err.Error()
		if at := p.base.Add(began); at.After(p.result.LastFailed) {
			p.result.LastFailed = at
		}
		return
	}
	now := p.now()
	p.result.OK++
	p.result.Outage = max(p.result.Outage, now-p.last)
	p.last = now
}

func (p *Prober) try(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	c, err := p.cfg.Dial(ctx, p.cfg.Target)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return fmt.Errorf("set deadline of probe: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	return Exchange(c, id)
}

// Window forgets what was counted and begins anew.
func (p *Prober) Window() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.result, p.last = ProbeResult{}, p.now()
}

// Result is what was found since the newest Window.
func (p *Prober) Result() ProbeResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.result
	r.Outage = max(r.Outage, p.now()-p.last)
	return r
}

// Succeeding waits until n probes in a row that began after the call have
// succeeded. When ctx ends first it returns why the newest one failed.
func (p *Prober) Succeeding(ctx context.Context, n int) error {
	if n > maxRecent/2 {
		return fmt.Errorf("wait for %d new connections in a row: at most %d are remembered", n, maxRecent/2)
	}
	since := p.now()
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	for {
		run, last := p.run(since)
		if run >= n {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			err := fmt.Errorf("wait for %d new connections in a row: %d so far: %w", n, run, context.Cause(ctx))
			return errors.Join(err, last)
		}
	}
}

// Began sums up the finished probes that began at from or later: how many
// succeeded and failed. Only the newest few hundred probes are remembered.
func (p *Prober) Began(from time.Time) (ok, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := from.Sub(p.base)
	for _, pr := range p.recent {
		switch {
		case pr.began < since:
		case pr.err != nil:
			failed++
		default:
			ok++
		}
	}
	return ok, failed
}

// run counts the newest successes in a row among the probes since.
func (p *Prober) run(since time.Duration) (n int, last error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pr := range p.recent {
		switch {
		case pr.began < since:
		case pr.err != nil:
			n, last = 0, pr.err
		default:
			n++
		}
	}
	return n, last
}
