package node

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/web"
)

// settle is for how long after its start a node calls nobody lost. Loading the programs keeps a
// processor busy for about a second, and where all nodes start at once, late answers are no deaths.
const settle = 2 * time.Second

// detector probes the ways to the other members' data planes and knows which of
// them are lost.
type detector struct {
	echo *detect.Echoer
	cfg  FailoverConfig
	wake func() // somebody was lost, or found again
	born time.Time

	mu     sync.Mutex
	paths  []detect.Path
	owner  map[detect.Key]fsm.NodeID
	lost   []fsm.NodeID
	lostAt map[fsm.NodeID]time.Time // since when
	poke   chan struct{}

	lostSomebody chan struct{} // capacity 1; for succeedLoop
}

func newDetector(m *member) *detector {
	d := &detector{cfg: m.cfg.Failover, wake: m.wakeReport, born: time.Now(), poke: make(chan struct{}, 1), lostSomebody: make(chan struct{}, 1)}
	d.echo = detect.NewEchoer(detect.EchoOptions{
		Logger: m.logger,
		Notify: func(detect.Key, detect.EchoChange) { wake(d.poke) },
	})
	return d
}

// run looks again at who is lost whenever a path has changed.
func (d *detector) run(ctx context.Context) error {
	tick := time.NewTicker(reportEvery) // why a path is down changes without a change of its state
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.poke:
		case <-tick.C:
		}
		d.look()
	}
}

func (d *detector) look() {
	d.mu.Lock()
	owner, before := d.owner, d.lost
	d.mu.Unlock()
	var now []fsm.NodeID
	if time.Since(d.born) >= settle {
		now = lostNodes(d.echo.Paths(), owner)
	}
	if slices.Equal(now, before) {
		return
	}
	d.mu.Lock()
	d.lost, d.lostAt = now, lostSince(now, d.lostAt, time.Now())
	d.mu.Unlock()
	d.wake()
	wake(d.lostSomebody)
}

// want gives the detector the ways there are now.
func (d *detector) want(paths []detect.Path, owner map[detect.Key]fsm.NodeID) error {
	slices.SortFunc(paths, func(a, b detect.Path) int { return a.Remote.Compare(b.Remote) })
	d.mu.Lock()
	same := reflect.DeepEqual(paths, d.paths) && reflect.DeepEqual(owner, d.owner)
	d.paths, d.owner = paths, owner
	d.mu.Unlock()
	if same {
		return nil
	}
	err := d.echo.SetPaths(paths)
	wake(d.poke)
	return err
}

// lostNow lists the nodes that are out of reach by every path.
func (d *detector) lostNow() []fsm.NodeID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost
}

// status is the paths as the API shows them.
func (d *detector) status() []web.BFDSession {
	d.mu.Lock()
	owner := d.owner
	d.mu.Unlock()
	var out []web.BFDSession
	for _, p := range d.echo.Paths() {
		name, ok := owner[p.Key]
		if !ok {
			continue
		}
		out = append(out, web.BFDSession{
			Peer: name, Address: p.Remote.String(), Interface: p.Interface, State: p.State.String(), Why: string(p.Why), Error: p.Error,
			IntervalMS: float64(d.cfg.EchoInterval.Microseconds()) / 1000, Multiplier: d.cfg.EchoMisses, RTTMS: float64(p.RTT.Microseconds()) / 1000,
		})
	}
	return out
}

// updatePaths probes where the members are now. A member's links are known from its
// last report; while it is silent they stay what they were.
func (m *member) updatePaths() {
	if m.detector == nil {
		return
	}
	peers := map[fsm.NodeID][]linkAddr{}
	for _, r := range m.reports.all(time.Now(), m.knownNode) {
		if r.Node != m.cfg.Name {
			peers[fsm.NodeID(r.Node)] = r.Links
		}
	}
	paths, owner := pathsTo(m.local.get().addrs, peers, detect.EchoConfig{Interval: m.cfg.Failover.EchoInterval, Misses: m.cfg.Failover.EchoMisses})
	if m.removed() {
		paths, owner = nil, nil
	}
	if err := m.detector.want(paths, owner); err != nil {
		m.logger.Warn("some paths cannot be probed", "err", err)
	}
}
