package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
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
	at time.Time // when what elections depend on changed last
}

type localView struct {
	unsure     bool   // nothing of this was looked at yet
	plan       uint64 // index of the last plan carried out
	ready      bool   // data plane attached everywhere and equal to the plan
	linksUp    bool
	problems   []string
	interfaces map[string]bpf.Attachment
	holding    []netip.Addr // VIPs this host holds
	addrs      []linkAddr   // where the data plane can be probed
}

func (l *local) get() localView {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.v
}

func (l *local) set(v localView) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed = l.v.unsure != v.unsure || l.v.ready != v.ready || l.v.linksUp != v.linksUp || !slices.Equal(l.v.holding, v.holding) ||
		!slices.Equal(l.v.addrs, v.addrs)
	if l.v.ready != v.ready || l.v.linksUp != v.linksUp {
		l.at = time.Now()
	}
	l.v = v
	return changed
}

// unchanged is for how long what elections depend on is as it is.
func (l *local) unchanged(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() {
		return 0
	}
	return now.Sub(l.at)
}

// driver carries the plan out. One goroutine, whole wanted sets, again and
// again: whatever undid its work is mended at the next pass.
type driver struct {
	m          *member
	syncedAt   time.Time // when the data plane was last given its services; zero: it did not take them
	announced  []plan.Advert
	sharing    map[int]peersOn       // what the data plane knows of the others, by link
	masters    map[string]fsm.NodeID // when somebody was last taken up from
	aliveNodes map[fsm.NodeID]bool
	up         map[string]bool
	saved      uint64 // the last verdict of death that member.json knows
	buried     deaths // and those of all members
	told       string // the last error that was logged

	wantsIPv6 bool // some VIP or endpoint is an IPv6 address
	readyIPv6 bool // the host was prepared for that

	partings    partings     // what is announced as the last choice for a moment
	climbs      climbs       // what places in successions neighbours are shown
	routed      []plan.Route // what may be announced, as handed on last
	routesKnown bool         // this process has had fresh contact: its routes are those of the cluster
	freshSince  time.Time    // when it first had that

	services plan.Services // compiled from
	from     *fsm.State    // this state
	self     plan.Self     // for this machine
	member   bool          // as one of the cluster, or not

	parts map[string]plan.Part // of this node, that the data plane knows of
}

// driveLoop runs a pass whenever the state or the host changed, and every second.
func (m *member) driveLoop(ctx context.Context) error {
	d := &driver{m: m, saved: m.died.Load(), buried: maps.Clone(m.deaths)}
	tick := time.NewTicker(assertEvery)
	defer tick.Stop()
	for {
		changed := m.store.Changed()
		if err := d.pass(ctx); ctx.Err() == nil {
			d.tell(err)
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
		if c.Links {
			m.dp.LinksChanged()
		}
		if c.Links || c.Addresses {
			m.routing.lookAgain()
			m.wakeDriver()
		}
	})
}

// tell logs an error once, however often the passes repeat it.
func (d *driver) tell(err error) {
	text := brief(err)
	if text != d.told && text != "" {
		d.m.logger.Warn("plan not carried out in full", "err", text)
	}
	d.told = text
}

// brief is err in one line that a person can still read.
func brief(err error) string {
	const most = 5
	if err == nil {
		return ""
	}
	lines := strings.Split(err.Error(), "\n")
	if more := len(lines) - most; more > 0 {
		lines = append(lines[:most], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "; ")
}

func (d *driver) pass(ctx context.Context) error {
	m := d.m
	rerr := m.renewLease()
	fresh := m.fresh()
	if !(m.contact.everFresh() && m.asked.Load()) && !m.removed() {
		// The state on disk may be old, and the pinned data plane of an
		// earlier life is nearer to the truth: touch nothing yet.
		return nil
	}
	if m.reborn.waits(time.Now(), fresh) {
		fresh = false
	}
	s := m.store.State()
	m.setFlowPeers(s)
	return errors.Join(rerr, d.carryOut(ctx, s, fresh))
}

// links describes the data plane's interfaces that are there. One that is gone
// must not keep this node from giving up its VIPs on the others.
func (m *member) links() ([]host.Link, error) {
	all, err := m.host.Links(m.cfg.DataPlane.Interfaces)
	if !errors.Is(err, host.ErrNoLink) {
		return all, err
	}
	for _, name := range m.cfg.DataPlane.Interfaces {
		l, lerr := m.host.Links([]string{name})
		if lerr != nil && !errors.Is(lerr, host.ErrNoLink) {
			return nil, lerr
		}
		all = append(all, l...)
	}
	return all, err
}

// compile makes the plan at s, and says whether its data plane is the same as
// the last time. After a verdict it is, and looking at every service would only
// cost the time the clients wait.
func (d *driver) compile(s *fsm.State, links []host.Link) (p plan.Plan, same bool) {
	self, member := d.selfAt(s, links)
	now := time.Now()
	self.Parting, self.Rank = d.partings.step(s, self.Node, now), d.climbs.step(s, self.Node, now)
	same = d.sharesServices(s, self, member) && fsm.SharesConfig(s, d.from)
	if !same {
		d.services = plan.CompileServices(s, self)
	}
	d.from, d.self, d.member = s, self, member
	return d.services.Plan(s, self), same
}

// selfAt is this machine as plans see it, and whether it is a member at s.
func (d *driver) selfAt(s *fsm.State, links []host.Link) (self plan.Self, member bool) {
	self = plan.Self{Node: fsm.NodeID(d.m.cfg.Name), Links: planLinks(links)}
	_, member = s.Node(self.Node)
	if d.m.removed() {
		self.Node, member = "", false // the state may not say it
	}
	return self, member
}

// sharesServices says whether what was compiled last differs from what is to be compiled at most by verdicts on endpoints.
func (d *driver) sharesServices(s *fsm.State, self plan.Self, member bool) bool {
	return d.from != nil && fsm.SharesServices(s, d.from) && member == d.member && sameLinks(self.Links, d.self.Links)
}

// sameParts says whether the data plane knows what this node is in the instances at s.
func (d *driver) sameParts(s *fsm.State) bool {
	parts := plan.Parts(s, d.self.Node)
	same := maps.Equal(parts, d.parts)
	d.parts = parts
	return same
}

func sameLinks(a, b []plan.Link) bool {
	return slices.EqualFunc(a, b, func(a, b plan.Link) bool {
		return a.Name == b.Name && slices.Equal(a.Prefixes, b.Prefixes)
	})
}

func addrsOf(addresses []plan.Address) []netip.Addr {
	out := make([]netip.Addr, len(addresses))
	for i, a := range addresses {
		out[i] = a.Addr
	}
	return out
}

// heldOf picks the addresses that this host has now, each alone in its prefix
// as VIPs are. What cannot be read counts as held: not to know is no reason to
// let go.
func heldOf(addresses []plan.Address) []netip.Addr {
	there, err := net.InterfaceAddrs()
	if err != nil {
		return addrsOf(addresses)
	}
	has := make(map[netip.Addr]bool, len(there))
	for _, a := range there {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.IsSingleIP() {
			has[p.Addr().Unmap()] = true
		}
	}
	return slices.DeleteFunc(addrsOf(addresses), func(a netip.Addr) bool { return !has[a.Unmap()] })
}

// noticeDeath closes the sync gate when the cluster declared this node dead
// since it last looked, also while its daemon was away: what others changed
// meanwhile it has not heard. The verdict's index tells, where looking at Alive
// would miss a death that is over already. It comes last in a pass, because it
// writes to the disk.
func (d *driver) noticeDeath(s *fsm.State) error {
	me, ok := s.Node(fsm.NodeID(d.m.cfg.Name))
	if !ok {
		return nil
	}
	if d.m.died.Load() != me.Died {
		d.m.gate.reset()
		d.m.reborn.buried()
		d.m.died.Store(me.Died) // from here on the gate's word counts (see inSync)
		// The others hold what was ours for orphaned until we name it again.
		d.m.repl.Overrun("this node was declared dead")
		d.m.wakeDriver()
	}
	deaths := maps.Clone(d.m.deaths)
	if d.saved == me.Died && maps.Equal(d.buried, deaths) {
		return nil
	}
	err := d.m.updateMembership(func(ms *membership) { ms.Died, ms.Deaths = me.Died, deaths })
	if errors.Is(err, fs.ErrNotExist) {
		return nil // joining: the next pass will find it
	} else if err != nil {
		return err
	}
	d.saved, d.buried = me.Died, deaths
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

// takesUp says whether the plan has addresses that this host does not hold.
func takesUp(p plan.Plan, holding []netip.Addr) bool {
	return slices.ContainsFunc(p.Addresses, func(a plan.Address) bool { return !slices.Contains(holding, a.Addr) })
}

func (m *member) setLocal(v localView) {
	if m.local.set(v) {
		m.wakeReport()
	}
}

// attached says whether each interface has a program on it.
func attached(how map[string]bpf.Attachment, want []string) bool {
	for _, i := range want {
		if how[i].Hook == "" {
			return false
		}
	}
	return true
}

// syncDataplane writes the plan into the maps if there is news in it, or they have not been compared for long.
func (d *driver) syncDataplane(ctx context.Context, t *turn) error {
	now := time.Now()
	if !t.due.news && !d.syncedAt.IsZero() && now.Sub(d.syncedAt) < resyncEvery {
		return nil
	}
	if err := d.m.dp.Sync(ctx, t.plan.Dataplane); err != nil {
		d.syncedAt = time.Time{}
		return err
	}
	d.syncedAt = now
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
	adverts := make([]announce.Advert, len(p.Adverts))
	for i, a := range p.Adverts {
		adverts[i] = announce.Advert{Addr: a.Addr, Link: a.Link, Epoch: a.Epoch}
	}
	aerr := m.l2.Announce(ctx, adverts)
	m.accessions.announced(byLink, epochsOf(p), time.Now())
	if why := d.announceAgain(s, links, added); why != "" && len(adverts) > 0 {
		m.l2.Again(why)
	}
	d.announced = p.Adverts
	for _, a := range added { // not before the announcements: clients wait for those
		m.logger.Info("holding vip", "vip", a.Addr, "link", a.Link)
	}
	for _, a := range removed {
		m.logger.Info("released vip", "vip", a.Addr, "link", a.Link)
	}
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

// epochsOf are those of the masterships that are made known on the links alone. Where
// there are routes as well, those are what clients wait for.
func epochsOf(p plan.Plan) map[uint64]bool {
	out := map[uint64]bool{}
	for _, a := range p.Adverts {
		out[a.Epoch] = true
	}
	for _, r := range p.Routes {
		delete(out, r.Epoch)
	}
	return out
}

func planLinks(links []host.Link) []plan.Link {
	out := make([]plan.Link, len(links))
	for i, l := range links {
		out[i] = plan.Link{Name: l.Name, Prefixes: l.Prefixes}
	}
	return out
}
