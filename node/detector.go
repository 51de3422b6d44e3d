package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/node/host"
	"pontoon/web"
)

// settle is for how long after its start a node calls nobody lost. Loading the programs keeps a
// processor busy for about a second, and where all nodes start at once, late answers are no deaths.
const settle = 2 * time.Second

// lookAroundEvery is how often a node looks where its daemon can be spoken to.
const lookAroundEvery = time.Second

// detector watches the ways to the other members, by echoes of their data planes and by
// sessions with their daemons, and knows which of the members, or of their links, are lost.
type detector struct {
	m        *member
	cfg      FailoverConfig
	echo     *detect.Echoer
	sessions *detect.Driver
	born     time.Time
	poke     chan struct{} // capacity 1: something changed

	mu      sync.Mutex
	watch   watch
	seen    sighting
	lostAt  map[fsm.NodeID]time.Time // since when each of seen.lost is
	cutAt   map[linkRef]time.Time    // and of seen.links
	control []linkAddr               // see whereabouts
	cut     map[fsm.NodeID]string    // who was told of as cut off, and where

	routers   []detect.Session // with BGP neighbours
	unwatched []string         // those that cannot be, in words

	fallen  []fall        // of them
	fell    chan struct{} // capacity 1: there are more
	setting sync.Mutex    // makes each setSessions one step, and rest
	rested  bool          // with it: no session is begun any more

	lostSomebody chan struct{} // capacity 1; for succeedLoop
}

func newDetector(m *member) *detector {
	d := &detector{m: m, cfg: m.cfg.Failover, born: time.Now(), poke: make(chan struct{}, 1), fell: make(chan struct{}, 1), lostSomebody: make(chan struct{}, 1)}
	d.echo = detect.NewEchoer(detect.EchoOptions{
		Logger: m.logger,
		Notify: func(detect.Key, detect.EchoChange) { wake(d.poke) },
		Doubt:  d.ask,
	})
	d.sessions = detect.NewDriver(detect.Options{Logger: m.logger, Notify: d.sessionChanged})
	return d
}

// run watches until ctx ends, and says goodbye then: who is told that a daemon stops need not
// take it for failed.
func (d *detector) run(ctx context.Context) error {
	if d.m.routing != nil {
		if err := d.resumeSessions(); err != nil {
			d.m.logger.Warn("BFD sessions with routers begin anew", "err", err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.echo.Run(ctx) })
	g.Go(func() error { return d.sessions.Run(ctx) })
	g.Go(func() error { return d.look(ctx) })
	return g.Wait()
}

// look looks again at who is lost whenever a way has changed.
func (d *detector) look(ctx context.Context) error {
	tick := time.NewTicker(reportEvery) // why a way is down changes without a change of its state
	defer tick.Stop()
	var around time.Time
	for {
		if now := time.Now(); now.Sub(around) >= lookAroundEvery {
			around = now
			d.lookAround()
		}
		d.lookOnce()
		select {
		case <-ctx.Done():
			return nil
		case <-d.poke:
		case <-tick.C:
			d.tellCutOff()
		}
	}
}

func (d *detector) lookOnce() {
	d.mu.Lock()
	w, before := d.watch, d.seen
	d.mu.Unlock()
	var now sighting
	if time.Since(d.born) >= settle {
		now = see(d.echo.Paths(), d.sessions.Sessions(), w)
	}
	if now.equal(before) {
		return
	}
	d.mu.Lock()
	d.seen, d.lostAt, d.cutAt = now, lostSince(now.lost, d.lostAt, time.Now()), lostSince(now.links, d.cutAt, time.Now())
	d.mu.Unlock()
	d.m.wakeReport()
	if !slices.Equal(now.lost, before.lost) {
		wake(d.lostSomebody)
		d.m.doubt(now.lost, before.lost)
	}
}

// ask polls all sessions with the node whose echo stays out for the first time: if its
// daemon lives it answers before the last echo of a verdict is missed.
func (d *detector) ask(k detect.Key) {
	d.mu.Lock()
	w := d.watch
	d.mu.Unlock()
	for _, s := range w.sessions {
		if w.owner[s] == w.owner[k] {
			d.sessions.Ask(s)
		}
	}
}

// want gives the detector the ways there are now.
func (d *detector) want(w watch) error {
	d.mu.Lock()
	same := reflect.DeepEqual(w, d.watch)
	d.watch = w
	d.mu.Unlock()
	if same {
		return nil
	}
	paths := make([]detect.Path, len(w.echoes))
	for i, k := range w.echoes {
		paths[i] = detect.Path{Key: k, Config: detect.EchoConfig{Interval: d.cfg.EchoInterval, Misses: d.cfg.EchoMisses}}
	}
	err := errors.Join(d.echo.SetPaths(paths), d.setSessions())
	wake(d.poke)
	return err
}

// sighting is what this node sees of the others now.
func (d *detector) sighting() sighting {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

// lostNow lists the nodes that are out of reach by every way.
func (d *detector) lostNow() []fsm.NodeID { return d.sighting().lost }

// whereabouts of this node's daemon beside the data plane's links.
func (d *detector) controlNow() []linkAddr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.control
}

// lookAround finds out where this node's daemon can be spoken to.
func (d *detector) lookAround() {
	all, err := d.m.allLinks()
	if err != nil {
		d.m.logger.Debug("addresses not looked at", "err", err)
		return // it stays what it was
	}
	var cluster netip.Addr
	if ap, err := netip.ParseAddrPort(d.m.cfg.Cluster.Address); err == nil {
		cluster = ap.Addr()
	}
	d.wantRouters(all)
	now := controlAddrs(all, d.m.cfg.DataPlane.Interfaces, cluster, d.m.isWitness())
	d.mu.Lock()
	changed := !slices.Equal(now, d.control)
	d.control = now
	d.mu.Unlock()
	if changed {
		d.m.wakeReport()
	}
}

// tellCutOff raises an event when links of members are cut off, by what all say, and when
// they are not any more.
func (d *detector) tellCutOff() {
	now := map[fsm.NodeID]string{}
	for n, links := range cutOff(d.m.reports.all(time.Now(), d.m.knownNode)) {
		now[n] = wordLinks(links)
	}
	d.mu.Lock()
	before := d.cut
	d.cut = now
	d.mu.Unlock()
	for n, where := range now {
		if before[n] != where {
			d.m.events.add(Event{Kind: web.EventNode, Node: n, Text: fmt.Sprintf("%s is cut off on %s: most nodes there do not reach its data plane", n, where)})
		}
	}
	for n, where := range before {
		if _, still := now[n]; !still {
			d.m.events.add(Event{Kind: web.EventNode, Node: n, Text: fmt.Sprintf("%s is no longer cut off on %s", n, where)})
		}
	}
}

func (m *member) isWitness() bool { return m.cfg.Role == string(fsm.RoleWitness) }

// allLinks describes all interfaces of this machine but loopback.
func (m *member) allLinks() ([]host.Link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			names = append(names, i.Name)
		}
	}
	return m.host.Links(names)
}

// updatePaths watches the ways to where the members are now. Where a member is, is known from its
// last report; while it is silent it stays what it was.
func (m *member) updatePaths() {
	peers := map[fsm.NodeID]whereabouts{}
	s := m.store.State()
	for _, r := range m.reports.all(time.Now(), m.knownNode) {
		if n, ok := s.Node(fsm.NodeID(r.Node)); ok && r.Node != m.cfg.Name {
			peers[n.Name] = whereabouts{witness: n.Role == fsm.RoleWitness, links: r.Links, control: r.Control}
		}
	}
	w := waysTo(m.whereabouts(), peers)
	if m.removed() {
		w = watch{}
	}
	if err := m.detector.want(w); err != nil {
		m.logger.Warn("some ways to other nodes cannot be watched", "err", err)
	}
}

// whereabouts of this node.
func (m *member) whereabouts() whereabouts {
	return whereabouts{witness: m.isWitness(), links: m.local.get().addrs, control: m.detector.controlNow()}
}
