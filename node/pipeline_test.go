package node

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/bpf"
	"pontoon/bpf/bpftest"
	"pontoon/fsm"
	"pontoon/internal/roottest"
	"pontoon/transport"
)

// The service for made-up clients whose flows are replicated, and the one whose are not.
const (
	pipelineTold, pipelineQuiet = 1, 2
	pipelineFlows               = 1 << 20
)

var pipelineVIP = netip.MustParseAddr("10.9.0.100")

// pipeline is what carries flows from the data plane of the first node into those
// of the others, all in this process: the members' own code, without Raft, gossip
// and API.
type pipeline struct {
	tb      testing.TB
	ns      *bpftest.NS // of the first
	members []*member
	gauges  []*bpftest.Gauge
	maker   *bpftest.Generator
}

func newPipeline(tb testing.TB, nodes int) *pipeline {
	tb.Helper()
	bpftest.RequirePrivilege(tb)
	p := &pipeline{tb: tb, ns: bpftest.NewNS(tb)}
	ca, err := transport.NewCA("0123456789abcdef")
	p.must(err)
	var interfaces []string
	for i := range nodes {
		cfg := Config{Name: fmt.Sprintf("lb%d", i+1)}
		cfg.DataPlane.PinDir = bpftest.PinDir(tb)
		if i == 0 {
			interfaces = p.wire()
			cfg.DataPlane.Interfaces = interfaces
		}
		p.members = append(p.members, p.member(cfg, uint8(i), identityOf(tb, ca, cfg.Name)))
	}
	state := p.state()
	alive := map[uint8]bool{}
	for i, m := range p.members {
		m.store.state.Store(state)
		alive[uint8(i)] = true
		p.must(m.dp.Sync(tb.Context(), pipelineServices(i == 0)))
		gauge, err := bpftest.OpenGauge(m.cfg.DataPlane.PinDir)
		p.must(err)
		tb.Cleanup(func() { _ = gauge.Close() })
		p.gauges = append(p.gauges, gauge)
	}
	for _, m := range p.members {
		m.dp.SetOwnersAlive(alive)
	}
	p.run()
	p.generator(interfaces[0])
	return p
}

func (p *pipeline) must(err error) {
	p.tb.Helper()
	if err != nil {
		p.tb.Fatal(err)
	}
}

// wire gives the first node an interface towards clients and one towards the
// endpoint, whose neighbours are known.
func (p *pipeline) wire() []string {
	peer := bpftest.NewNS(p.tb)
	in, far := bpftest.Veth(p.ns, "eth1", peer, "far")
	out, end := bpftest.Veth(p.ns, "eth2", peer, "end")
	in.Address("10.9.0.1/24")
	out.Address("10.8.0.1/24")
	in.Neighbour("10.9.0.5", far.MAC)
	out.Neighbour("10.8.0.21", end.MAC)
	in.Route(bpftest.GeneratorClients.String(), "10.9.0.5", 0)
	p.ns.Do(func() { p.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	return []string{"eth1", "eth2"}
}

func identityOf(tb testing.TB, ca *transport.CA, name string) *transport.Identity {
	tb.Helper()
	request, err := transport.NewRequest(name)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := ca.Sign(request.CSR(), name, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		tb.Fatal(err)
	}
	id, err := request.Finish(cert, ca.Certificate())
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// member is one node's part of the pipeline, opened.
func (p *pipeline) member(cfg Config, slot uint8, id *transport.Identity) *member {
	p.tb.Helper()
	m := &member{
		cfg: cfg, logger: slog.New(slog.DiscardHandler), events: newEventLog(func(Event) {}), id: id, slot: slot,
		store: newStore(), guests: map[machine]bool{},
	}
	var err error
	m.mux, err = transport.NewMux(transport.MuxConfig{
		Address: "127.0.0.1:0", Identity: id, Authorize: func(string, [32]byte) error { return nil },
	})
	p.must(err)
	p.ns.Do(func() {
		m.dp, err = bpf.Open(bpf.Options{
			PinDir: cfg.DataPlane.PinDir, Interfaces: cfg.DataPlane.Interfaces, MaxFlows: pipelineFlows, Slot: slot, Hook: bpf.HookTC,
		})
	})
	p.must(err)
	p.tb.Cleanup(func() {
		if err := m.dp.Close(); err != nil {
			p.tb.Error(err)
		}
		p.ns.Do(func() { err = bpf.Remove(cfg.DataPlane.PinDir, cfg.DataPlane.Interfaces) })
		if err != nil {
			p.tb.Error(err)
		}
	})
	p.must(m.openReplication())
	m.mux.Handle(transport.ALPNReplication, m.repl.Serve)
	return m
}

// state knows all nodes.
func (p *pipeline) state() *fsm.State {
	s, index := fsm.New(), uint64(0)
	do := func(c fsm.Command) {
		index++
		next, err := s.Apply(index, c)
		p.must(err)
		s = next
	}
	now := time.Unix(1_700_000_000, 0)
	for i, m := range p.members {
		key := m.id.Key()
		n := fsm.Node{Name: fsm.NodeID(m.cfg.Name), Role: fsm.RoleLB, Address: m.mux.Addr().String(), GossipPort: uint16(7401 + i), Key: key[:]}
		if i == 0 {
			cluster := fsm.Cluster{ID: "0123456789abcdef", CA: []byte{1}, GossipKey: [][]byte{make([]byte, 32)}}
			do(fsm.InitCluster{Cluster: cluster, Node: n})
			continue
		}
		token := fmt.Sprintf("t-%s", n.Name)
		hash := sha256.Sum256([]byte(token))
		do(fsm.CreateToken{Token: fsm.Token{ID: token, Hash: hash[:], Role: fsm.RoleLB, Expires: now.Add(time.Hour)}, Now: now})
		do(fsm.JoinNode{TokenID: token, SecretHash: hash[:], Node: n, Now: now})
	}
	return s
}

func pipelineServices(master bool) bpf.Desired {
	d := bpf.Desired{VIPs: []netip.Addr{pipelineVIP}}
	for id, how := range map[uint32]bpf.Replicate{pipelineTold: bpf.ReplicateEstablished, pipelineQuiet: bpf.ReplicateNone} {
		s := bpf.Service{
			ID: id, VIP: pipelineAddress(id), Protocol: 6, Mode: bpf.ModeDNAT, Algorithm: bpf.AlgorithmRR, Replicate: how,
			Endpoints: []bpf.Endpoint{{ID: id, Addr: netip.MustParseAddrPort(fmt.Sprintf("10.8.0.21:%d", 8000+id)), Weight: 1}},
		}
		if master {
			s.Epoch = 1
		}
		d.Services = append(d.Services, s)
	}
	return d
}

func pipelineAddress(service uint32) netip.AddrPort {
	return netip.AddrPortFrom(pipelineVIP, uint16(80+service))
}

// run sets everything going until the test ends.
func (p *pipeline) run() {
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range p.members {
		for _, loop := range []func(context.Context) error{m.mux.Run, m.repl.Run, m.dp.Run, m.pumpFlows} {
			g.Go(func() error { return loop(ctx) })
		}
	}
	p.tb.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			p.tb.Error(err)
		}
	})
}

func (p *pipeline) generator(iface string) {
	p.tb.Helper()
	var injector *bpftest.Injector
	var err error
	p.ns.Do(func() { injector, err = bpftest.NewInjector(p.members[0].cfg.DataPlane.PinDir, iface) })
	p.must(err)
	p.tb.Cleanup(func() { _ = injector.Close() })
	p.maker, err = bpftest.NewGenerator(injector, pipelineAddress(pipelineTold))
	p.must(err)
	p.tb.Cleanup(func() { _ = p.maker.Close() })
}

// replicateTo makes so many of the other nodes peers of each other and the first. What
// status told of earlier peers begins anew.
func (p *pipeline) replicateTo(peers int) {
	p.tb.Helper()
	for _, m := range p.members {
		m.repl.SetPeers(nil)
	}
	p.await("no stream runs", func() bool {
		return !slices.ContainsFunc(p.members, func(m *member) bool { return len(m.repl.Status()) > 0 })
	})
	var all []transport.ReplicationPeer
	for _, m := range p.members[:1+peers] {
		all = append(all, transport.ReplicationPeer{Node: m.cfg.Name, Address: m.mux.Addr().String()})
	}
	for _, m := range p.members[:1+peers] {
		m.repl.SetPeers(all)
	}
	p.await("all streams run", func() bool {
		running := 0
		for _, s := range p.members[0].repl.Status() {
			if s.State == transport.ReplicationStreaming {
				running++
			}
		}
		return running == peers
	})
}

// held is how many connections a node's table holds.
func (p *pipeline) held(node int) uint64 {
	n, err := p.gauges[node].Connections()
	if err != nil {
		p.tb.Error(err)
	}
	return n
}

// empty ends all connections, and begins again with the first client.
func (p *pipeline) empty() {
	p.tb.Helper()
	for _, service := range []uint32{pipelineTold, pipelineQuiet} {
		_, err := p.members[0].dp.Flush(context.Background(), service)
		p.must(err)
	}
	p.maker.Rewind()
	p.await("all tables are empty", func() bool {
		for i := range p.members {
			if p.held(i) != 0 {
				return false
			}
		}
		return true
	})
}

// await is patient: a million connections take their time.
func (p *pipeline) await(what string, ok func() bool) bool {
	p.tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(roottest.Patient(time.Minute))
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			p.tb.Errorf("still not: %s", what)
			return false
		}
	}
	return true
}
