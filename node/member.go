package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/host"
	"pontoon/transport"
	"pontoon/web"
)

// member is this node as part of a cluster: from the moment it has an identity
// until it leaves or the daemon stops.
type member struct {
	cfg     Config
	version string
	logger  *slog.Logger
	events  *eventLog

	id     *transport.Identity
	slot   uint8
	died   atomic.Uint64 // index of the last verdict of death the sync gate was closed for
	store  *store
	raft   *raftGroup
	mux    *transport.Mux
	peers  *peerClient
	gossip *gossiper

	// Nil on a witness.
	dp   *bpf.Dataplane
	l2   *announce.L2
	repl *transport.Replicator

	routing *routing // BGP
	probing *probing // of endpoints

	host     *host.Host // a witness only looks
	detector *detector

	turn atomic.Uint32 // see leaderToTell

	outcast    atomic.Bool // see removed
	superseded atomic.Bool // likewise, and for good; see supersede.go
	asked      atomic.Bool // whether that is so
	fileMu     sync.Mutex  // for updateMembership
	leaving    atomic.Bool // by its own will
	guestMu    sync.Mutex
	guests     map[machine]bool // let in unknown, while this node knew too little

	writes sync.RWMutex // of who proposes on this node while it leads; see applyIf

	recovery atomic.Pointer[recovery] // to be committed before all else; see rebuild.go

	contact contact
	// leadTerm is the Raft term in which this node leads and has applied all that
	// was committed before; 0 while there is none.
	leadTerm atomic.Uint64
	gate     syncGate
	reborn   reborn
	deaths   deaths // of the driver

	lease     leaseTerm
	rest      rest
	takeovers takeovers
	// The two halves of a failover's timeline: what this node decided as leader, and what it became master of.
	decisions  decisions
	accessions accessions
	orphans    atomic.Uint64 // connections of nodes that died which others made known here
	local      local
	// reporting ends the call that tells the leader of this node, if one is under way.
	reporting atomic.Pointer[context.CancelFunc]
	reports   *reportTable

	leaderNow, reportNow, driverNow chan struct{} // capacity 1: look again now
}

// memberConfig is what a member starts from.
type memberConfig struct {
	cfg       Config
	version   string
	logger    *slog.Logger
	events    *eventLog
	id        *transport.Identity
	slot      uint8
	died      uint64
	deaths    deaths
	bootstrap bool // the first node of a new cluster

	superseded bool // see membership

	discardFlows bool // see RunOptions
}

// newMember opens everything a member owns; run sets it going. On an error
// nothing stays open.
func newMember(c memberConfig) (m *member, err error) {
	m = &member{
		cfg: c.cfg, version: c.version, logger: c.logger, events: c.events, id: c.id, slot: c.slot,
		accessions: accessions{wake: make(chan struct{}, 1)}, rest: rest{noted: make(chan struct{}, 1)},
		store: newStore(), reports: newReportTable(), guests: map[machine]bool{},
		leaderNow: make(chan struct{}, 1), reportNow: make(chan struct{}, 1), driverNow: make(chan struct{}, 1),
	}
	m.died.Store(c.died)
	m.deaths = c.deaths
	m.superseded.Store(c.superseded)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	addr, err := netip.ParseAddrPort(c.cfg.Cluster.Address)
	if err != nil {
		return m, fmt.Errorf("cluster address: %w", err)
	}
	m.mux, err = transport.NewMux(transport.MuxConfig{
		Address: c.cfg.Cluster.Address, Identity: c.id, Authorize: m.authorize, Logger: c.logger,
	})
	if err != nil {
		return m, err
	}
	m.peers = newPeerClient(m.mux, m.addressOf)
	m.gossip = &gossiper{
		self: machine{c.cfg.Name, c.id.Key()}, bind: netip.AddrPortFrom(addr.Addr(), c.cfg.Cluster.GossipPort),
		store: m.store, logger: c.logger, wake: m.wakeLeader,
	}
	if m.host, err = host.New(c.logger); err != nil {
		return m, err
	}
	m.detector = newDetector(m)
	if c.cfg.Role == string(fsm.RoleLB) {
		if err := m.openDataplane(c.discardFlows); err != nil {
			return m, err
		}
	}
	layer := transport.NewRaftLayer(m.mux, net.TCPAddrFromAddrPort(addr))
	layer.NodeName = m.nodeAt
	m.raft, err = openRaft(raftDir(c.cfg.DataDir), c.cfg.Name, c.cfg.Cluster.Address, c.bootstrap, layer, m.store, c.logger)
	if err != nil {
		return m, err
	}
	return m, m.resumeRecovery()
}

// openDataplane loads the programs, or takes over those that are pinned, and
// prepares the host to carry what they forward.
func (m *member) openDataplane(discardFlows bool) (err error) {
	if _, err = m.host.Links(m.cfg.DataPlane.Interfaces); err != nil {
		return err
	}
	// The old values are not put back when the daemon stops: the data plane
	// goes on forwarding without it.
	if _, err = m.host.Prepare(m.cfg.DataPlane.Interfaces); err != nil {
		return err
	}
	m.dp, err = bpf.Open(bpf.Options{
		PinDir: m.cfg.DataPlane.PinDir, Interfaces: m.cfg.DataPlane.Interfaces, MaxFlows: m.cfg.DataPlane.MaxFlows,
		Slot: m.slot, Hook: m.cfg.DataPlane.Hook, Logger: m.logger, Discard: discardFlows,
	})
	if err != nil {
		return err
	}
	if err := m.openLease(); err != nil {
		return err
	}
	m.gate.grace = m.cfg.AgentGrace + syncGrace
	m.gate.start(m.dp.Adopted())
	before, err := hadLife(m.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("look for an earlier life: %w", err)
	}
	m.reborn.begin(before && !m.dp.Adopted())
	// What was adopted forwards: the restart of a daemon is no reason to move
	// its instances. A fresh data plane is certainly not ready.
	m.local.set(localView{unsure: m.dp.Adopted()})
	if m.dp.Adopted() {
		m.events.add(Event{Kind: web.EventDataPlane, Node: fsm.NodeID(m.cfg.Name), Text: "adopted the pinned data plane with its flows"})
	}
	// A process that was stopped must not repeat on waking a claim it has lost.
	// Nor does a node argue about a VIP that lacks a link, since it is to lose it.
	fence := func(announce.Advert) bool { return m.local.get().linksUp && m.fresh() && m.leaseLeft() > 0 }
	// Router: the links forward IPv6 before the first IPv6 VIP is held on them.
	if m.l2, err = announce.NewL2(announce.L2Config{Fence: fence, Router: true, Logger: m.logger}); err != nil {
		return err
	}
	m.routing, m.probing = newRouting(m), newProbing(m)
	return m.openReplication()
}

// openReplication prepares the streams of flows to and from the peers.
func (m *member) openReplication() (err error) {
	sink := newFlowSink(m)
	m.repl, err = transport.NewReplicator(transport.ReplicationConfig{
		Node: m.cfg.Name, RecordSize: bpf.RecordSize, RecordVersions: bpf.RecordVersions(), Convert: bpf.ConvertRecords,
		Dial: func(ctx context.Context, p transport.ReplicationPeer) (net.Conn, error) {
			return m.mux.Dial(ctx, p.Address, transport.ALPNReplication, p.Node)
		},
		Source: flowSource{m.dp}, Sink: sink, Digests: sink, Orphans: sink, DigestVersion: bpf.DigestVersion, OnEvent: m.replicationEvent, Logger: m.logger,
	})
	return err
}

// run is the member's life. It returns nil when stop ends, and leaves the data
// plane, the addresses and the pins as they are.
func (m *member) run(stop context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(stop))
	defer end()
	g, ctx := errgroup.WithContext(life)
	g.Go(func() error {
		select {
		case <-stop.Done():
			m.farewell(ctx)
			end()
		case <-ctx.Done():
		}
		return nil
	})
	loop := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	m.runMember(loop)
	if m.dp != nil {
		m.runDataplane(loop)
	} else {
		loop("witness", m.watchState)
	}
	err := g.Wait()
	if err == nil && stop.Err() != nil { // in order, and to come back
		err = m.leaveLease()
	}
	return errors.Join(err, m.close())
}

// runMember starts what every member does.
func (m *member) runMember(loop func(name string, f func(context.Context) error)) {
	api, join := m.mux.Listen(transport.ALPNAPI), m.mux.Listen(transport.ALPNJoin)
	m.mux.Handle(transport.ALPNCA, m.serveCAKey)
	if m.repl != nil {
		m.mux.Handle(transport.ALPNReplication, m.repl.Serve)
	}
	loop("cluster port", m.mux.Run)
	loop("internal api", func(ctx context.Context) error { return serveHTTP(ctx, api, m.peerHandler(), m.logger) })
	loop("join api", func(ctx context.Context) error { return serveHTTP(ctx, join, m.joinHandler(), m.logger) })
	loop("gossip", m.gossip.run)
	loop("leadership", m.leadLoop)
	loop("reports", m.reportLoop)
	loop("events", m.eventLoop)
	loop("leader watch", m.watchLeader)
	loop("ca key", m.caKeyLoop)
	loop("contact", m.watchContact)
	loop("disk", m.watchDisk)
	loop("members", m.watchMembers)
	loop("rebuilt", m.watchSuperseded)
	loop("paths", m.watchPaths)
	loop("succession", m.succeedLoop)
	loop("log format", m.store.watchFatal)
}

// runDataplane starts what only those do that forward.
func (m *member) runDataplane(loop func(name string, f func(context.Context) error)) {
	loop("data plane", m.dp.Run)
	loop("announcements", m.l2.Run)
	loop("routes", m.routing.run)
	loop("replication", m.repl.Run)
	loop("flow events", m.pumpFlows)
	loop("replication watch", m.watchReplication)
	loop("takeover watch", m.watchTakeovers)
	loop("timelines", m.timelineLoop)
	loop("flow table watch", m.watchFlowTable)
	loop("endpoint probes", m.probing.run)
	loop("drains", m.watchDrains)
	loop("lease", m.leaseLoop)
	loop("host watch", m.watchHost)
	loop("drivers", m.driveLoop)
}

// watchPaths watches the ways to others until ctx ends, and a little longer: a router
// whose BFD session ends before it has seen that BGP restarts would drop the routes
// that are to stay.
func (m *member) watchPaths(ctx context.Context) error {
	if m.routing == nil {
		return m.detector.run(ctx)
	}
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		defer cancel()
		<-m.routing.done
		if !m.routing.comesBack() {
			return
		}
		if err := m.detector.rest(restLength(m.cfg)); err != nil {
			m.logger.Warn("some routers may take this restart for a failure", "err", err)
		}
	})
	defer stop()
	return m.detector.run(later)
}

// watchState is a witness's share of driveLoop: it has nothing to carry out.
func (m *member) watchState(ctx context.Context) error {
	for {
		changed := m.store.Changed()
		m.local.set(localView{ready: true, linksUp: true, plan: m.store.State().Index()})
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// close closes what newMember opened; what the kernel holds stays.
func (m *member) close() error {
	var errs []error
	if m.raft != nil {
		errs = append(errs, m.raft.close())
	}
	if m.mux != nil {
		errs = append(errs, m.mux.Close())
	}
	if m.peers != nil {
		m.peers.close()
	}
	if m.l2 != nil {
		errs = append(errs, m.l2.Close())
	}
	if m.dp != nil {
		errs = append(errs, m.dp.Close())
	}
	if m.host != nil {
		errs = append(errs, m.host.Close())
	}
	return errors.Join(errs...)
}

// nodeAt names the member whose cluster address this is, "" while none is
// known: a Raft address must lead to the very node it stands for.
func (m *member) nodeAt(address string) string {
	for _, n := range m.store.State().Nodes() {
		if n.Address == address {
			return string(n.Name)
		}
	}
	return ""
}

func (m *member) addressOf(node string) (string, bool) {
	if n, ok := m.store.State().Node(fsm.NodeID(node)); ok {
		return n.Address, true
	}
	if addr, id := m.raft.LeaderWithID(); string(id) == node {
		return string(addr), true
	}
	return "", false
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (m *member) wakeLeader() { wake(m.leaderNow) }
func (m *member) wakeReport() { wake(m.reportNow) }
func (m *member) wakeDriver() { wake(m.driverNow) }
