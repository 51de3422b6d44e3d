package web

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pontoon/fsm"
)

// testToken is the API token of the handlers under test.
const testToken = "s3cret-token"

// fakeBackend is a node on real replicated state, without network, log or
// kernel.
type fakeBackend struct {
	mu      sync.Mutex
	state   *fsm.State
	runtime func(*Status) // what a data plane would add
	err     error         // of every method that has one
	flows   []Flow
	filter  FlowFilter
	events  []Event
	more    chan struct{}
	health  Health

	routes map[BGPDirection][]BGPRoute

	traced      []TraceEvent // what a session tells
	traceFilter TraceFilter
	reads       int
	readable    int // the newest version that all members read; 0 is this program's
}

var _ Backend = (*fakeBackend)(nil)

func (b *fakeBackend) State() *fsm.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

func (b *fakeBackend) set(change func(*fakeBackend)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

func (b *fakeBackend) Status(context.Context) (Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	switch {
	case b.err != nil:
		return Status{}, b.err
	case b.state.Cluster().ID == "":
		return Status{}, ErrNoCluster
	}
	st := Status{
		Self:    "lb1",
		Cluster: ClusterStatus{ID: b.state.Cluster().ID, Leader: "lb1", Term: 3, Applied: b.state.Index(), Quorum: true},
		VIPs:    b.state.VIPs(),
		Flows:   FlowCounts{Max: 1 << 20},
	}
	for _, n := range b.state.Nodes() {
		ns := NodeStatus{Node: n, Raft: RaftNonvoter, Applied: b.state.Index()}
		if n.Voter {
			ns.Raft = RaftVoter
		}
		if n.Name == "lb1" {
			ns.Raft = RaftLeader
		}
		for _, i := range b.state.Instances() {
			if i.Master == n.Name {
				ns.MasterOf = append(ns.MasterOf, i.Name)
			}
		}
		st.Nodes = append(st.Nodes, ns)
	}
	st.Instances = InstanceStatuses(b.state)
	for _, s := range b.state.Services() {
		ss := ServiceStatus{Service: s}
		for _, e := range s.Endpoints {
			ss.Endpoints = append(ss.Endpoints, EndpointStatus{Address: e.Address, Weight: e.Weight, Admin: e.Admin, Health: EndpointUnknown})
		}
		st.Services = append(st.Services, ss)
	}
	if b.runtime != nil {
		b.runtime(&st)
	}
	return st, nil
}

func (b *fakeBackend) Propose(_ context.Context, cmd fsm.Command) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	next, err := b.state.Apply(b.state.Index()+1, cmd)
	b.state = next
	return next.Index(), err
}

func (b *fakeBackend) Reads(_ context.Context, version int) bool {
	return version <= cmp.Or(b.readable, fsm.CommandVersion)
}

func (b *fakeBackend) ProposeIf(ctx context.Context, cmd fsm.Command, want string) (uint64, error) {
	if err := b.State().CheckFingerprint(cmd, want); err != nil {
		return 0, err
	}
	return b.Propose(ctx, cmd)
}

func (b *fakeBackend) happen(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
	close(b.more)
	b.more = make(chan struct{})
}

func (b *fakeBackend) Events(since time.Time) ([]Event, func(context.Context) ([]Event, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := len(b.events)
	var backlog []Event
	for _, e := range b.events {
		if !e.Time.Before(since) {
			backlog = append(backlog, e)
		}
	}
	return backlog, func(ctx context.Context) ([]Event, error) {
		for {
			b.mu.Lock()
			fresh, more := b.events[seen:], b.more
			seen = len(b.events)
			b.mu.Unlock()
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

func (b *fakeBackend) Flows(_ context.Context, f FlowFilter) ([]Flow, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.filter = f
	var out []Flow
	for _, fl := range b.flows {
		if f.Match(fl.Service, fl.Client) && (f.Limit == 0 || len(out) < f.Limit) {
			out = append(out, fl)
		}
	}
	return out, b.err
}

func (b *fakeBackend) FlushFlows(_ context.Context, service string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.flows[:0]
	for _, f := range b.flows {
		if f.Service != service {
			kept = append(kept, f)
		}
	}
	n := len(b.flows) - len(kept)
	b.flows = kept
	return n, b.err
}

func (b *fakeBackend) Trace(ctx context.Context, f TraceFilter, started func(), emit func(TraceEvent) error) (TraceSummary, error) {
	if b.err != nil {
		return TraceSummary{}, b.err
	}
	b.traceFilter = f
	started()
	for _, e := range b.traced {
		if err := emit(e); err != nil {
			return TraceSummary{}, err
		}
	}
	<-ctx.Done()
	return TraceSummary{Packets: uint64(len(b.traced))}, nil
}

func (b *fakeBackend) BGPRoutes(_ context.Context, d BGPDirection) ([]BGPRoute, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.routes[d]), b.err
}

func (b *fakeBackend) Health() Health {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.health
}

// fakeOps forms and leaves nothing, and remembers what it was asked.
type fakeOps struct {
	mu    sync.Mutex
	err   error
	asked []string
}

var _ ClusterOps = (*fakeOps)(nil)

func (o *fakeOps) ask(what string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, what)
	return o.err
}

func (o *fakeOps) Init(context.Context) (InitResult, error) {
	err := o.ask("init")
	return InitResult{ClusterID: "c1", Token: "tok", JoinCommand: "pontoon join 10.0.0.1:7400 --token tok"}, err
}

func (o *fakeOps) Join(_ context.Context, req JoinRequest) (JoinResult, error) {
	err := o.ask("join " + req.Address + " " + req.Token)
	return JoinResult{ClusterID: "c1", Name: "lb2", Role: fsm.RoleLB}, err
}

func (o *fakeOps) Leave(_ context.Context, force bool, progress func(string)) error {
	progress("handing over default")
	if err := o.ask("leave"); err != nil && !force {
		return err
	}
	progress("left the cluster")
	return nil
}

func (o *fakeOps) Recover(_ context.Context, req RecoverRequest, progress func(string)) (RecoverResult, error) {
	progress("looking for the others")
	if err := o.ask(fmt.Sprint("recover ", req.Fenced)); err != nil {
		return RecoverResult{}, err
	}
	progress("rebuilding the group")
	return RecoverResult{ClusterID: "c1", Survivor: "lb1", Fenced: req.Fenced, Recovered: 1, Index: 77}, nil
}

func (o *fakeOps) CreateToken(_ context.Context, role fsm.Role, ttl time.Duration) (string, error) {
	err := o.ask("token " + string(role) + " " + ttl.String())
	return "new-token", err
}

// world is a cluster of three nodes with one service, as lb1 sees it.
func world(t *testing.T) (*fakeBackend, *fakeOps) {
	t.Helper()
	b := &fakeBackend{state: fsm.New(), more: make(chan struct{}), health: Health{Live: true, Ready: true}}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	hash := sha256.Sum256([]byte("x"))
	node := func(name, ip string) fsm.Node {
		return fsm.Node{Name: fsm.NodeID(name), Role: fsm.RoleLB, Address: ip + ":7400", GossipPort: 7401, Key: make([]byte, fsm.KeySize)}
	}
	cmds := []fsm.Command{
		fsm.InitCluster{
			Cluster: fsm.Cluster{ID: "5e1f0a3c9b7d4e21", CA: []byte("der"), GossipKey: [][]byte{make([]byte, 32)}, Seed: 1},
			Node:    node("lb1", "192.168.80.11"),
		},
	}
	for _, n := range []fsm.Node{node("lb2", "192.168.80.12"), node("lb3", "192.168.80.13")} {
		id := "tok-" + string(n.Name)
		cmds = append(cmds,
			fsm.CreateToken{Token: fsm.Token{ID: id, Hash: hash[:], Role: fsm.RoleLB, Expires: now.Add(time.Hour)}, Now: now},
			fsm.JoinNode{TokenID: id, SecretHash: hash[:], Node: n, Now: now},
			fsm.SetVoter{Node: n.Name})
	}
	for _, n := range []fsm.NodeID{"lb1", "lb2", "lb3"} {
		cmds = append(cmds,
			fsm.NodeVerdict{Node: n, Alive: true}, fsm.NodeReport{Node: n, Ready: true, LinksUp: true, InSync: true})
	}
	cmds = append(cmds,
		fsm.CreateToken{Token: fsm.Token{ID: "open1", Hash: hash[:], Role: fsm.RoleWitness, Expires: now.Add(time.Hour)}, Now: now},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("192.168.80.200")}},
		fsm.PutService{Service: fsm.Service{
			Name: "web", VIP: netip.MustParseAddr("192.168.80.200"), Port: 80, Protocol: fsm.TCP, Mode: fsm.ModeFullNAT, Algorithm: fsm.RoundRobin,
			Endpoints: []fsm.Endpoint{
				{Address: netip.MustParseAddrPort("10.2.0.2:8080"), Weight: 1, Admin: fsm.AdminUp},
				{Address: netip.MustParseAddrPort("10.2.0.3:8080"), Weight: 2, Admin: fsm.AdminUp},
			},
		}},
		fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb1"},
	)
	for _, c := range cmds {
		if _, err := b.Propose(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", fsm.Kind(c), err)
		}
	}
	at := time.Now()
	b.runtime = func(st *Status) {
		st.Flows = FlowCounts{Established: 12, HalfOpen: 1, Owned: 12, Max: 1 << 20}
		st.Replication = []PeerReplication{
			{Peer: "lb2", State: ReplicationStreaming, Sent: 240, Acked: 238, LagMS: 1.5},
			{Peer: "lb3", State: ReplicationSnapshot, Sent: 20, Acked: 12, LagMS: 8, Resyncs: 1},
		}
		st.Failovers = []fsm.Failover{
			{
				Instance: "default", From: "lb2", To: "lb1", Epoch: 9, At: at, Cause: fsm.CauseLost,
				Parts: fsm.FailoverParts{Detected: 58.2, Confirmed: 63, Committed: 75, Announced: 79, FirstPacket: 83},
			},
			{Instance: "default", From: "lb3", To: "lb2", Epoch: 7, At: at, Cause: fsm.CauseMove, Parts: fsm.FailoverParts{Committed: 3.1, Announced: 5}},
		}
		st.Interfaces = []InterfaceStatus{{Name: "eth1", Up: true, Hook: "tcx"}, {Name: "eth2", Up: true, Hook: "tcx"}}
		st.Drops = map[string]uint64{"no_service": 7, "bad_checksum": 1}
		if len(st.Services) > 0 && len(st.Services[0].Endpoints) > 1 {
			st.Services[0].Flows = 12
			st.Services[0].Endpoints[0].Health, st.Services[0].Endpoints[0].Flows = EndpointUp, 4
			st.Services[0].Endpoints[1].Health, st.Services[0].Endpoints[1].Flows = EndpointUp, 8
		}
	}
	b.flows = []Flow{
		{Protocol: fsm.TCP, Client: ap("10.1.0.5:40001"), VIP: ap("192.168.80.200:80"), SNAT: ap("192.168.80.200:20001"), Endpoint: ap("10.2.0.2:8080"), State: "established", Service: "web", Node: "lb1", Owner: true, AgeS: 1.5, IdleS: 0.1, Packets: 9, Bytes: 900},
		{Protocol: fsm.TCP, Client: ap("10.1.0.6:40002"), VIP: ap("192.168.80.200:80"), Endpoint: ap("10.2.0.3:8080"), State: "established", Service: "web", Node: "lb1"},
	}
	b.events = []Event{
		{Time: time.Now().Add(-2 * time.Hour), Kind: EventJoin, Node: "lb2", Text: "lb2 joined as a load balancer"},
		{Time: time.Now().Add(-time.Minute), Index: 20, Kind: EventFailover, Node: "lb1", Instance: "default", Text: "lb1 is master of default"},
	}
	return b, &fakeOps{}
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// handlerAt is a handler of one level of access.
func handlerAt(t *testing.T, b *fakeBackend, o *fakeOps, level AccessLevel) http.Handler {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "pontoon_test", Help: "A metric of the test."}))
	h, err := NewHandler(Config{
		Backend: b, Ops: o, Access: Access{Level: level, Token: testToken}, Version: "1.2.3", Registry: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// do asks a handler as a client on loopback would; header is name, value, ….
func do(h http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	var r *http.Request
	if body == "" {
		r = httptest.NewRequest(method, "http://127.0.0.1:7480"+path, nil)
	} else {
		r = httptest.NewRequest(method, "http://127.0.0.1:7480"+path, strings.NewReader(body))
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func (b *fakeBackend) Uses(context.Context) ([]NodeUses, error) {
	return []NodeUses{
		{Node: "lb1", Uses: []AddressUse{
			{netip.MustParsePrefix("172.16.9.1/32"), "an address of eth9"},
			{netip.MustParsePrefix("172.16.8.0/28"), "routed to 172.16.9.9"},
			{netip.MustParsePrefix("172.0.0.0/8"), "routed to 172.16.9.9"},
		}},
		{Node: "lb2", Uses: []AddressUse{
			{netip.MustParsePrefix("172.16.9.2/32"), "an address of eth9"},
			{netip.MustParsePrefix("172.16.8.0/28"), "routed to 172.16.9.9"},
		}},
		{Node: "lb3", Error: "it is down"},
	}, nil
}

func (b *fakeBackend) CompareFlows(context.Context) ([]FlowComparison, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return []FlowComparison{{Peer: "lb2", Equal: true, Buckets: 4096}, {Peer: "lb3", Error: "not connected"}}, b.err
}
