package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// fakeDaemon stands behind the real HTTP API: the replicated state is the real
// one, Raft and the data plane are made up.
type fakeDaemon struct {
	mu     sync.Mutex
	self   fsm.NodeID
	state  *fsm.State
	polls  int // of the status since a join: the vote comes at the third
	events []web.Event
	more   chan struct{} // closed when events grow
	before func()        // called before a conditional write is looked at; nil: nothing
}

var (
	_ web.Backend    = (*fakeDaemon)(nil)
	_ web.ClusterOps = (*fakeDaemon)(nil)
)

const goodToken = "good-token"

// newFakeDaemon is a node in no cluster.
func newFakeDaemon(self fsm.NodeID) *fakeDaemon {
	return &fakeDaemon{self: self, state: fsm.New(), more: make(chan struct{})}
}

// newFakeCluster is lb1 of a healthy cluster of lb1, lb2 and lb3.
func newFakeCluster() *fakeDaemon {
	d := newFakeDaemon("lb1")
	d.form()
	return d
}

func (d *fakeDaemon) form() {
	d.must(fsm.InitCluster{
		Cluster: fsm.Cluster{ID: "c0ffee", CA: []byte{1}, GossipKey: [][]byte{make([]byte, 32)}, Seed: 1},
		Node:    fakeNode("lb1", 11),
	})
	for i, name := range []fsm.NodeID{"lb2", "lb3"} {
		d.addNode(name, 12+i)
		d.must(fsm.SetVoter{Node: name})
	}
	for _, name := range []fsm.NodeID{"lb1", "lb2", "lb3"} {
		d.must(fsm.NodeVerdict{Node: name, Alive: true})
		d.must(fsm.NodeReport{Node: name, Ready: true, LinksUp: true, InSync: true})
	}
	d.must(fsm.PutInstance{Name: fsm.DefaultInstance, Priorities: map[fsm.NodeID]int{"lb1": 3, "lb2": 2, "lb3": 1}})
}

func (d *fakeDaemon) addNode(name fsm.NodeID, host int) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	hash := make([]byte, 32)
	d.must(fsm.CreateToken{Token: fsm.Token{ID: "t" + string(name), Hash: hash, Role: fsm.RoleLB, Expires: now.Add(time.Hour)}, Now: now})
	d.must(fsm.JoinNode{TokenID: "t" + string(name), SecretHash: hash, Node: fakeNode(name, host), Now: now})
}

func fakeNode(name fsm.NodeID, host int) fsm.Node {
	return fsm.Node{Name: name, Role: fsm.RoleLB, Address: fmt.Sprintf("192.168.80.%d:7400", host), GossipPort: 7401, Key: make([]byte, fsm.KeySize)}
}

// must applies a command of the test's own making.
func (d *fakeDaemon) must(c fsm.Command) {
	next, err := d.state.Apply(d.state.Index()+1, c)
	if err != nil {
		panic(fmt.Sprintf("test set-up: %v", err))
	}
	d.state = next
}

func (d *fakeDaemon) State() *fsm.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

func (d *fakeDaemon) Propose(_ context.Context, cmd fsm.Command) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next, err := d.state.Apply(d.state.Index()+1, cmd)
	d.state = next
	return next.Index(), err
}

func (d *fakeDaemon) ProposeIf(ctx context.Context, cmd fsm.Command, want string) (uint64, error) {
	if d.before != nil {
		d.before()
	}
	if err := d.State().CheckFingerprint(cmd, want); err != nil {
		return 0, err
	}
	return d.Propose(ctx, cmd)
}

func (d *fakeDaemon) Status(context.Context) (web.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.state
	if s.Cluster().ID == "" {
		return web.Status{}, web.ErrNoCluster
	}
	if d.polls++; d.polls == 3 {
		if n, ok := s.Node(d.self); ok && !n.Voter {
			d.must(fsm.SetVoter{Node: d.self})
			s = d.state
		}
	}
	st := web.Status{
		Cluster: web.ClusterStatus{ID: s.Cluster().ID, Leader: "lb1", Term: 3, Applied: s.Index(), Quorum: true},
		Self:    d.self,
		VIPs:    s.VIPs(),
		Replication: []web.PeerReplication{
			{
				Peer: "lb2", State: web.ReplicationStreaming, Sent: 1200, Acked: 1200, LagMS: 0.4, LagP50MS: 2.25, LagP99MS: 9.5,
				Resyncs: 3, ResyncCauses: map[string]uint64{"reconnect": 2, "overrun": 1}, Protocol: 2, RecordVersion: 2,
				LastResync: &web.Resync{Cause: "overrun", Text: "flow events were lost", At: time.Now().Add(-time.Hour)},
				Digest:     web.DigestFigures{Rounds: 5, BucketsRepaired: 1, RecordsRepaired: 24, OrphanRounds: 2, OrphansSent: 7},
				Inbound:    web.InboundReplication{State: web.ReplicationStreaming, Received: 77, RecordVersion: 2},
			},
			{Peer: "lb3", State: web.ReplicationDown, Sent: 10, Dropped: 2},
		},
		Flows: web.FlowCounts{Established: 12, HalfOpen: 1, Owned: 9, Replica: 3, Adopted: 2, Max: 1 << 20},
		Drops: map[string]uint64{"no_service": 7, "bad_checksum": 0},
		Interfaces: []web.InterfaceStatus{
			{Name: "eth1", Up: true, Hook: "tcx", HookReason: "virtual interface (veth): XDP would lose segmentation offload"},
			{Name: "eth2", HookReason: "find interface eth2: link not found"},
		},
		Warnings: []string{"eth2 has no carrier"},
	}
	st.Nodes = fakeNodes(s)
	st.Instances = web.InstanceStatuses(s)
	st.BGP = fakeSessions(s, d.self)
	for _, v := range s.Services() {
		st.Services = append(st.Services, fakeService(v))
	}
	return st, nil
}

func fakeNodes(s *fsm.State) []web.NodeStatus {
	var out []web.NodeStatus
	for _, n := range s.Nodes() {
		ns := web.NodeStatus{Node: n, Raft: web.RaftNonvoter, Applied: s.Index()}
		if n.Voter {
			ns.Raft = web.RaftVoter
		}
		if n.Name == "lb1" {
			ns.Raft = web.RaftLeader
		}
		for _, i := range s.Instances() {
			if i.Master == n.Name {
				ns.MasterOf = append(ns.MasterOf, i.Name)
			}
		}
		out = append(out, ns)
	}
	return out
}

func fakeService(s fsm.Service) web.ServiceStatus {
	out := web.ServiceStatus{Service: s, Flows: 12}
	for _, e := range s.Endpoints {
		es := web.EndpointStatus{Address: e.Address, Weight: e.Weight, Admin: e.Admin, Health: web.EndpointUnknown, Flows: 6}
		if e.Admin == fsm.AdminDrain {
			es.DrainFlowsLeft = es.Flows
		}
		out.Endpoints = append(out.Endpoints, es)
	}
	return out
}

func (d *fakeDaemon) Reads(context.Context, int) bool { return true }

// happen adds an event and wakes who follows.
func (d *fakeDaemon) happen(e web.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
	close(d.more)
	d.more = make(chan struct{})
}

func (d *fakeDaemon) Events(since time.Time) ([]web.Event, func(context.Context) ([]web.Event, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := len(d.events)
	backlog := slices.DeleteFunc(slices.Clone(d.events), func(e web.Event) bool { return e.Time.Before(since) })
	return backlog, func(ctx context.Context) ([]web.Event, error) {
		for {
			d.mu.Lock()
			fresh, more := slices.Clone(d.events[seen:]), d.more
			seen = len(d.events)
			d.mu.Unlock()
			if len(fresh) > 0 {
				return fresh, nil
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-more:
			}
		}
	}
}

func (d *fakeDaemon) Flows(_ context.Context, f web.FlowFilter) ([]web.Flow, error) {
	var out []web.Flow
	for i := range 3 {
		flow := web.Flow{
			Protocol: fsm.TCP,
			Client:   netip.MustParseAddrPort(fmt.Sprintf("192.168.80.%d:40000", 101+i)),
			VIP:      netip.MustParseAddrPort("192.168.80.200:80"),
			Endpoint: netip.MustParseAddrPort("10.2.0.21:8080"),
			State:    "established", Service: "web", Node: d.self, Owner: i == 0, AgeS: 61.5, IdleS: 0.1, Packets: 10, Bytes: 1000,
		}
		if f.Match(flow.Service, flow.Client) {
			out = append(out, flow)
		}
	}
	if f.Limit > 0 && len(out) > f.Limit {
		out = out[:f.Limit]
	}
	return out, nil
}

func (d *fakeDaemon) CompareFlows(context.Context) ([]web.FlowComparison, error) {
	return []web.FlowComparison{{Peer: "lb2", Equal: true, Buckets: 4096}, {Peer: "lb3", Error: "it is not connected"}}, nil
}

func (d *fakeDaemon) Uses(context.Context) ([]web.NodeUses, error) {
	return []web.NodeUses{{Node: "lb1"}, {Node: "lb2", Error: "it is down"}}, nil
}

func (d *fakeDaemon) FlushFlows(context.Context, string) (int, error) { return 3, nil }

func (d *fakeDaemon) Trace(ctx context.Context, f web.TraceFilter, started func(), emit func(web.TraceEvent) error) (web.TraceSummary, error) {
	if f.Service == "busy" {
		return web.TraceSummary{}, web.ErrTraceBusy
	}
	started()
	for _, e := range fakeTrace() {
		if err := emit(e); err != nil {
			return web.TraceSummary{Packets: 1}, err
		}
	}
	<-ctx.Done()
	return web.TraceSummary{Packets: uint64(len(fakeTrace())), Lost: 1}, nil
}

func (d *fakeDaemon) Health() web.Health { return web.Health{Live: true, Ready: true} }

func (d *fakeDaemon) Init(context.Context) (web.InitResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state.Cluster().ID != "" {
		return web.InitResult{}, fmt.Errorf("this node is in cluster %s: leave it first with `pontoon leave`: %w",
			d.state.Cluster().ID, fsm.ErrAlreadyInitialised)
	}
	d.form()
	return web.InitResult{
		ClusterID: "c0ffee", Token: goodToken,
		JoinCommand: "pontoon join 192.168.80.11:7400 --token " + goodToken,
	}, nil
}

func (d *fakeDaemon) Join(_ context.Context, req web.JoinRequest) (web.JoinResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if req.Token != goodToken {
		return web.JoinResult{}, fmt.Errorf("token %s is used already: make a new one with `pontoon token create`: %w",
			req.Token, fsm.ErrTokenInvalid)
	}
	d.form()
	d.addNode(d.self, 14)
	d.polls = 0
	return web.JoinResult{ClusterID: "c0ffee", Name: d.self, Role: fsm.RoleLB}, nil
}

func (d *fakeDaemon) Leave(_ context.Context, force bool, progress func(string)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state.Cluster().ID == "" {
		return web.ErrNoCluster
	}
	progress("handing default over to lb2")
	if d.self == "last" && !force {
		return fmt.Errorf("last is the last voter: `pontoon leave --force` ends the cluster: %w", fsm.ErrInUse)
	}
	progress("leaving the Raft group")
	d.state = fsm.New()
	return nil
}

func (d *fakeDaemon) Recover(_ context.Context, req web.RecoverRequest, progress func(string)) (web.RecoverResult, error) {
	progress("looking whether any of them answers")
	if slices.Contains(req.Fenced, "lb2") {
		return web.RecoverResult{}, fmt.Errorf("lb2 still answers at 192.168.80.12:7400: fence it first: %w", fsm.ErrInUse)
	}
	return web.RecoverResult{ClusterID: "c0ffee", Survivor: d.self, Fenced: req.Fenced, Recovered: 1, Index: 77}, nil
}

func (d *fakeDaemon) CreateToken(_ context.Context, role fsm.Role, ttl time.Duration) (string, error) {
	return strings.Join([]string{"token", string(role), ttl.String()}, "-"), nil
}

// fakeSessions are the configured peers of a node, the first of them established.
func fakeSessions(s *fsm.State, self fsm.NodeID) []web.BGPPeer {
	as, _ := s.BGPOf(self)
	var out []web.BGPPeer
	for i, p := range s.BGPPeersOf(self) {
		b := web.BGPPeer{Peer: p.Address.String(), Node: self, AS: p.AS, LocalAS: as, State: web.BGPActive, HoldS: 9, BFD: web.BGPBFDOff, Error: "connection refused"}
		if i == 0 {
			b.State, b.Error, b.Received, b.Advertised = web.BGPEstablished, "", 3, 1
			b.Since, b.RouterID = time.Now().Add(-90*time.Second), "192.0.2.254"
		}
		out = append(out, b)
	}
	return out
}

func (d *fakeDaemon) BGPRoutes(_ context.Context, dir web.BGPDirection) ([]web.BGPRoute, error) {
	if dir == web.BGPReceived {
		return []web.BGPRoute{{
			Peer: "192.168.80.1", Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHop: netip.MustParseAddr("192.168.80.1"),
			ASPath: []uint32{65101, 64999}, Best: true,
		}}, nil
	}
	return []web.BGPRoute{{
		Peer: "192.168.80.1", Prefix: netip.MustParsePrefix("192.168.99.1/32"), NextHop: netip.MustParseAddr("192.168.80.11"), MED: 10,
		ASPath: []uint32{64512}, Communities: []fsm.Community{"65000:1", "65000:1:2"}, Best: true,
	}}, nil
}
