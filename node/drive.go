package node

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/host"
	"pontoon/node/plan"
)

const (
	assertEvery = time.Second      // addresses and links are compared with the host this often
	resyncEvery = 10 * time.Second // the data plane's maps are
)

// local is what the drivers have reached on this machine.
type local struct {
	mu sync.Mutex
	v  localView
}

type localView struct {
	unsure     bool   // nothing of this was looked at yet
	plan       uint64 // index of the last plan carried out
	ready      bool   // data plane attached everywhere and equal to the plan
	linksUp    bool
	problems   []string
	interfaces map[string]string
	holding    []netip.Addr // VIPs this host holds
}

func (l *local) get() localView {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.v
}

func (l *local) set(v localView) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = l.v.unsure != v.unsure || l.v.ready != v.ready || l.v.linksUp != v.linksUp || !slices.Equal(l.v.holding, v.holding)
	l.v = v
	return changed
}

// driver carries the plan out. One goroutine, whole wanted sets, again and
// again: whatever undid its work is mended at the next pass.
type driver struct {
	m          *member
	synced     bpf.Desired
	syncedAt   time.Time
	announced  []plan.Advert
	aliveNodes map[fsm.NodeID]bool
	up         map[string]bool
	died       uint64 // the last verdict of death that was acted upon
}

// driveLoop runs a pass whenever the state or the host changed, and every second.
func (m *member) driveLoop(ctx context.Context) error {
	d := &driver{m: m, died: m.died}
	tick := time.NewTicker(assertEvery)
	defer tick.Stop()
	for {
		changed := m.store.Changed()
		if err := d.pass(ctx); err != nil && ctx.Err() == nil {
			m.logger.Warn("plan not carried out in full", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		case <-m.driverNow:
		}
	}
}

// watchHost wakes the driver when links, addresses or neighbours change.
func (m *member) watchHost(ctx context.Context) error {
	return m.host.Watch(ctx, func(c host.Change) {
		if c.Neighbours || c.Routes || c.Links {
			m.dp.FlushNextHops()
		}
		if c.Links || c.Addresses {
			m.wakeDriver()
		}
	})
}

func (d *driver) pass(ctx context.Context) error {
	m := d.m
	fresh := m.fresh()
	if !m.contact.everFresh() {
		// The state on disk may be old, and the pinned data plane of an
		// earlier life is nearer to the truth: touch nothing yet.
		return nil
	}
	s := m.store.State()
	if err := d.noticeDeath(s); err != nil {
		return err
	}
	m.setFlowPeers(s)
	links, err := m.host.Links(m.cfg.DataPlane.Interfaces)
	if err != nil {
		m.setLocal(localView{plan: m.local.get().plan, problems: []string{err.Error()}, holding: m.local.get().holding})
		return err
	}
	if d.carrierChanged(links) {
		// Whoever was without a link, however briefly, may have been replaced
		// meanwhile, and must not claim a VIP before it has asked.
		m.contact.unsettle(time.Now())
		m.wakeReport()
		fresh = false
	}
	p := plan.Compile(s, plan.Self{Node: fsm.NodeID(m.cfg.Name), Links: planLinks(links)})
	errs := []error{d.syncDataplane(ctx, p.Dataplane)}
	v := localView{problems: p.Problems, linksUp: true, interfaces: m.dp.Interfaces(), holding: m.local.get().holding}
	if !fresh {
		keepHeld(&p, v.holding)
	}
	herr := d.holdAddresses(ctx, s, p, links)
	errs = append(errs, herr)
	if herr == nil {
		v.holding = v.holding[:0:0]
		for _, a := range p.Addresses {
			v.holding = append(v.holding, a.Addr)
		}
	}
	for _, l := range links {
		v.linksUp = v.linksUp && l.Up
	}
	err = errors.Join(errs...)
	v.ready = errs[0] == nil && attached(v.interfaces, m.cfg.DataPlane.Interfaces)
	v.plan = m.local.get().plan
	if err == nil {
		v.plan = p.Gen
	} else {
		v.problems = append(v.problems, err.Error())
	}
	m.setLocal(v)
	return err
}

// noticeDeath closes the sync gate when the cluster declared this node dead
// since it last looked, also while its daemon was away: what others changed
// meanwhile it has not heard. The verdict's index tells, where looking at Alive
// would miss a death that is over already.
func (d *driver) noticeDeath(s *fsm.State) error {
	me, ok := s.Node(fsm.NodeID(d.m.cfg.Name))
	if !ok || me.Died == d.died {
		return nil
	}
	d.m.gate.reset()
	ms, err := loadMembership(d.m.cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // joining: the next pass will find it
	} else if err != nil {
		return err
	}
	ms.Died = me.Died
	if err := ms.save(d.m.cfg.DataDir); err != nil {
		return err
	}
	d.died = me.Died
	return nil
}

// keepHeld takes from the plan what this host does not hold yet. Without fresh
// contact nothing is taken up; what is held and still this node's by the last
// state it knows stays; and what that state gave to another is released, since
// no later state takes that decision back.
func keepHeld(p *plan.Plan, held []netip.Addr) {
	p.Addresses = slices.DeleteFunc(p.Addresses, func(a plan.Address) bool { return !slices.Contains(held, a.Addr) })
	p.Adverts = slices.DeleteFunc(p.Adverts, func(a plan.Advert) bool { return !slices.Contains(held, a.Addr) })
}

func (m *member) setLocal(v localView) {
	if m.local.set(v) {
		m.wakeReport()
	}
}

// attached says whether each interface has a program on it.
func attached(hooks map[string]string, want []string) bool {
	for _, i := range want {
		if h := hooks[i]; h != "tcx" && h != "clsact" {
			return false
		}
	}
	return true
}

func (d *driver) syncDataplane(ctx context.Context, want bpf.Desired) error {
	now := time.Now()
	compare := want
	compare.Gen = d.synced.Gen
	if reflect.DeepEqual(compare, d.synced) && now.Sub(d.syncedAt) < resyncEvery && !d.syncedAt.IsZero() {
		return nil
	}
	if err := d.m.dp.Sync(ctx, want); err != nil {
		d.syncedAt = time.Time{}
		return err
	}
	d.synced, d.syncedAt = want, now
	return nil
}

// holdAddresses makes the host hold this node's VIPs and no others, and the
// network know it. What is lost is given up before anything is taken.
func (d *driver) holdAddresses(ctx context.Context, s *fsm.State, p plan.Plan, links []host.Link) error {
	m := d.m
	want := make([]host.Address, len(p.Addresses))
	for i, a := range p.Addresses {
		want[i] = host.Address{Addr: a.Addr, Link: a.Link}
	}
	added, removed, err := m.host.SyncAddresses(want, p.Managed)
	for _, a := range added {
		m.logger.Info("holding vip", "vip", a.Addr, "link", a.Link)
	}
	for _, a := range removed {
		m.logger.Info("released vip", "vip", a.Addr, "link", a.Link)
	}
	adverts := make([]announce.Advert, len(p.Adverts))
	for i, a := range p.Adverts {
		adverts[i] = announce.Advert{Addr: a.Addr, Link: a.Link, Epoch: a.Epoch}
	}
	aerr := m.l2.Announce(ctx, adverts)
	if why := d.announceAgain(s, links, added); why != "" && len(adverts) > 0 {
		m.l2.Again(why)
	}
	d.announced = p.Adverts
	return errors.Join(err, aerr)
}

// announceAgain says why what was announced before must be announced anew: a
// node that comes back may have claimed the VIPs while it was cut off, a link
// that was down has lost what was sent, and an address that was taken away by
// hand may have been answered for by another.
func (d *driver) announceAgain(s *fsm.State, links []host.Link, added []host.Address) string {
	why := ""
	alive := map[fsm.NodeID]bool{}
	for _, n := range s.Nodes() {
		alive[n.Name] = n.Alive
		if was, known := d.aliveNodes[n.Name]; known && !was && n.Alive {
			why = "node " + string(n.Name) + " came back"
		}
	}
	up := map[string]bool{}
	for _, l := range links {
		up[l.Name] = l.Up
		if was, known := d.up[l.Name]; known && !was && l.Up {
			why = "link " + l.Name + " came up"
		}
	}
	if len(added) > 0 && len(d.announced) > 0 {
		why = "an address had to be put back"
	}
	if !maps.Equal(alive, d.aliveNodes) {
		d.aliveNodes = alive
	}
	d.up = up
	return why
}

func planLinks(links []host.Link) []plan.Link {
	out := make([]plan.Link, len(links))
	for i, l := range links {
		out[i] = plan.Link{Name: l.Name, Prefixes: l.Prefixes}
	}
	return out
}
