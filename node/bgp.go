package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/plan"
)

// routing speaks BGP for a member. The driver hands it what is wanted and does not
// wait: nothing that a neighbour or the speaker does may hold up an address. One
// goroutine makes the newest of it so, others look after what neighbours do.
type routing struct {
	m      *member
	logger *slog.Logger
	bgp    *announce.BGP
	wake   chan struct{} // capacity 1: want is new
	stir   chan struct{} // capacity 1: something of neighbours or learned routes changed
	done   chan struct{} // closed when the sessions have ended
	final  atomic.Bool   // the daemon does not come back as this member

	mu       sync.Mutex
	want     speaking
	handed   bool               // want was given
	config   announce.BGPConfig // of the sessions
	set      bool               // the speaker was given it
	whole    bool               // and could do all of it
	told     bool               // the sessions were given routes
	routes   []plan.Route       // which
	withheld []netip.Addr       // which not, for want of endpoints
	trouble  string             // why what is wanted is not so
	imports  imports

	stale atomic.Bool // the kernel may have dropped learned routes
}

// bgpRetry is the pace of trying again what failed, and of looking for what nobody told of.
const bgpRetry = time.Second

func newRouting(m *member) *routing {
	r := &routing{
		m: m, logger: m.logger, wake: make(chan struct{}, 1), stir: make(chan struct{}, 1), done: make(chan struct{}),
	}
	r.bgp = announce.NewBGP(announce.BGPOptions{Logger: m.logger, Notify: func() { wake(r.stir) }})
	// Whatever ends the daemon, its data plane forwards and it is to come back.
	r.bgp.Leave(true)
	return r
}

// run speaks until ctx ends; how the sessions end then was said by hand and part.
func (r *routing) run(ctx context.Context) error {
	defer close(r.done)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.bgp.Run(ctx) })
	g.Go(func() error { return r.apply(ctx) })
	g.Go(func() error { return r.resets(ctx) })
	g.Go(func() error { return r.watch(ctx) })
	return g.Wait()
}

// hand says what is wanted from now on. It never blocks.
func (r *routing) hand(want speaking) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.handed && want.equal(r.want) {
		return
	}
	r.want, r.handed = want, true
	r.bgp.Leave(want.graceful && !r.final.Load())
	wake(r.wake)
}

// part makes the end of this member the end of its sessions: neighbours are told so
// and drop the routes at once.
func (r *routing) part() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.final.Store(true)
	r.bgp.Leave(false)
}

// comesBack says whether the neighbours were asked to keep the routes at the end.
func (r *routing) comesBack() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handed && r.want.graceful && !r.final.Load()
}

// apply makes the speaker what is wanted, again and again while it cannot.
func (r *routing) apply(ctx context.Context) error {
	retry := time.NewTicker(bgpRetry)
	defer retry.Stop()
	for failed := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-retry.C:
			if !failed {
				continue
			}
		}
		err := r.applyOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		failed = err != nil
		r.tellTrouble(err)
	}
}

// applyOnce gives the speaker what differs from what it was given.
func (r *routing) applyOnce(ctx context.Context) error {
	r.mu.Lock()
	want, told, routes := r.want, r.told, r.routes
	r.mu.Unlock()
	cerr := r.configure(ctx, want.config)
	if !want.known {
		return cerr
	}
	if !told || !sayTheSame(want.routes, routes) {
		if err := r.bgp.Announce(ctx, announcedRoutes(want.routes)); err != nil {
			return errors.Join(cerr, fmt.Errorf("announce routes: %w", err))
		}
	}
	r.m.accessions.announced(byRoute, epochsOfRoutes(want.routes), time.Now())
	r.mu.Lock()
	before := r.withheld
	r.told, r.routes, r.withheld = true, want.routes, want.withheld
	r.mu.Unlock()
	for _, e := range withheldEvents(before, want.withheld, want.routes, fsm.NodeID(r.m.cfg.Name)) {
		r.m.events.add(e)
	}
	return cerr
}

// configure makes the sessions those of want. What fails (a port that is taken, say) touches sessions only, and the speaker goes on
// trying: routes are given to it all the same, and the import rules are those of want. What cannot be at all changes nothing.
func (r *routing) configure(ctx context.Context, want announce.BGPConfig) error {
	r.mu.Lock()
	done := r.whole && reflect.DeepEqual(want, r.config)
	r.mu.Unlock()
	if done {
		return nil
	}
	if err := want.Validate(); err != nil {
		return fmt.Errorf("configure bgp: %w", err)
	}
	reset, err := r.bgp.Configure(ctx, want)
	for _, p := range reset {
		r.logger.Info("BGP session begun anew: its settings have changed", "peer", p)
	}
	if ctx.Err() != nil {
		return err
	}
	r.mu.Lock()
	r.config, r.set, r.whole = want, true, err == nil
	r.mu.Unlock()
	return err
}

// tellTrouble logs what cannot be done, once, and keeps it for the status.
func (r *routing) tellTrouble(err error) {
	text := brief(err)
	r.mu.Lock()
	is := text != r.trouble
	r.trouble = text
	r.mu.Unlock()
	if is && text != "" {
		r.logger.Warn("BGP is not as it is to be", "err", text)
	}
}

// announcedNow is how many routes the sessions were given.
func (r *routing) announcedNow() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.routes)
}

// watch looks after what neighbours do. After each look it rests for as long as the look took: a neighbour
// that says much, and goes on, takes half of one processor at most.
func (r *routing) watch(ctx context.Context) error {
	tick := time.NewTicker(bgpRetry)
	defer tick.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	known := map[netip.Addr]session{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
		began := time.Now()
		var news []Event
		known, news = sessionNews(known, r.bgp.Peers(), fsm.NodeID(r.m.cfg.Name))
		for _, e := range news {
			r.m.events.add(e)
		}
		if err := r.importRoutes(time.Now()); err != nil && ctx.Err() == nil {
			r.logger.Debug("learned routes not all in the kernel", "err", err)
		}
		took := time.Since(began)
		select {
		case <-ctx.Done():
			return nil
		case <-r.stir:
		case <-tick.C:
		}
		rest.Reset(time.Until(began.Add(2 * took)))
	}
}
