package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"pontoon/transport"
	"pontoon/web"
)

// RunOptions is what the command line gives beside the node file.
type RunOptions struct {
	Logger  *slog.Logger
	Version string
	// DiscardFlows gives up a pinned data plane that this version cannot read,
	// with its connections. Without it such a data plane is an error.
	DiscardFlows bool
	// Ready is called once the control socket answers; Stopping when the
	// daemon begins to stop; Status with a line for the service manager. All
	// may be nil.
	Ready    func()
	Stopping func()
	Status   func(string)
}

// Run is the daemon. It returns nil when ctx ends, and leaves the data plane
// forwarding: what is pinned stays, and the next Run adopts it. When the end takes
// longer than eight seconds, because a disk hangs, it returns an error before all of it has ended; the process
// should end then.
func Run(ctx context.Context, cfg Config, opts RunOptions) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	cfg = cfg.canonical()
	lock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	n := newDaemon(cfg, opts)
	g, gctx := errgroup.WithContext(ctx)
	n.group, n.ctx = g, gctx
	if err := n.resume(); err != nil {
		return err
	}
	servers, err := n.openServers()
	if err != nil {
		return errors.Join(err, n.stop())
	}
	for _, s := range servers {
		g.Go(func() error { return s.run(gctx) })
	}
	call(opts.Ready)
	n.notify()
	g.Go(func() error {
		<-gctx.Done()
		call(opts.Stopping)
		return n.stop()
	})
	err = endOf(gctx, g.Wait, endTime, n.holdUp)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func call(f func()) {
	if f != nil {
		f()
	}
}

// daemon is the process: in a cluster it has a member, otherwise it waits to
// be told to init or join.
type daemon struct {
	cfg    Config
	opts   RunOptions
	logger *slog.Logger
	events *eventLog

	ctx   context.Context // of the whole daemon; set once before use
	group *errgroup.Group

	op sync.Mutex // one init, join or leave at a time

	mu      sync.Mutex
	member  *member
	running *memberRun
	ending  *member // the last one that was asked to stop
	absent  error   // why there is no member, where that passes; nil for "in no cluster"
}

// memberRun is a running member's handle.
type memberRun struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done
}

var (
	_ web.Backend    = (*daemon)(nil)
	_ web.ClusterOps = (*daemon)(nil)
)

func newDaemon(cfg Config, opts RunOptions) *daemon {
	logger := opts.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	logger = logger.With("self", cfg.Name)
	return &daemon{cfg: cfg, opts: opts, logger: logger, events: newEventLog(func(e Event) {
		logger.Info(e.Text, "event", e.Kind, "gen", e.Index)
	})}
}

// resume goes on as a member if this machine was one.
func (d *daemon) resume() error {
	ms, err := loadMembership(d.cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := ms.check(d.cfg); err != nil {
		return err
	}
	id, err := transport.LoadIdentity(d.cfg.DataDir)
	if err != nil {
		return err
	}
	_, err = d.startMember(id, ms, false)
	return err
}

// startMember opens a member and sets it going. Its failure ends the daemon.
func (d *daemon) startMember(id *transport.Identity, ms membership, bootstrap bool) (*member, error) {
	m, err := newMember(memberConfig{
		cfg: d.cfg, version: d.opts.Version, logger: d.logger, events: d.events, id: id,
		slot: ms.Slot, died: ms.Died, deaths: ms.Deaths, superseded: ms.Superseded, bootstrap: bootstrap, discardFlows: d.opts.DiscardFlows,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(d.ctx)
	run := &memberRun{cancel: cancel, done: make(chan struct{})}
	d.mu.Lock()
	d.member, d.running = m, run
	d.mu.Unlock()
	d.group.Go(func() error {
		defer close(run.done)
		run.err = m.run(ctx)
		if run.err != nil && ctx.Err() == nil {
			return run.err
		}
		return nil
	})
	return m, nil
}

// stopMember ends the member and waits for it.
func (d *daemon) stopMember() error {
	d.mu.Lock()
	run := d.running
	if d.member != nil {
		d.ending = d.member
	}
	d.member, d.running = nil, nil
	d.mu.Unlock()
	if run == nil {
		return nil
	}
	run.cancel()
	<-run.done
	return run.err
}

// stop is the end of the daemon; the member's own context has ended already.
func (d *daemon) stop() error {
	err := d.stopMember()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (d *daemon) current() (*member, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.member != nil:
		return d.member, nil
	case d.absent != nil:
		return nil, d.absent
	}
	return nil, web.ErrNoCluster
}

func (d *daemon) notify() {
	if d.opts.Status == nil {
		return
	}
	if m, err := d.current(); err == nil {
		d.opts.Status("member of cluster as " + m.cfg.Name)
	} else {
		d.opts.Status("in no cluster: waiting for init or join")
	}
}
