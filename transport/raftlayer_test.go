package transport

import (
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// logFSM keeps what was applied.
type logFSM struct{ applied chan string }

func (f *logFSM) Apply(l *raft.Log) any               { f.applied <- string(l.Data); return nil }
func (f *logFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots") }
func (f *logFSM) Restore(rc io.ReadCloser) error      { return rc.Close() }
func (f *logFSM) wait(t *testing.T, want string)      { t.Helper(); waitApplied(t, f.applied, want) }

func waitApplied(t *testing.T, ch <-chan string, want string) {
	t.Helper()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case got := <-ch:
		if got != want {
			t.Fatalf("applied %q, want %q", got, want)
		}
	case <-timer.C:
		t.Fatalf("%q was not applied", want)
	}
}

type raftNode struct {
	*raft.Raft
	fsm  *logFSM
	addr raft.ServerAddress
}

func startRaft(t *testing.T, ca *CA, name string, owner func(addr string) string, change ...func(*MuxConfig)) *raftNode {
	t.Helper()
	var layer *RaftLayer
	mux := startMux(t, newTestIdentity(t, ca, name), func(m *Mux) {
		layer = NewRaftLayer(m, m.Addr())
		layer.NodeName = owner
	}, change...)
	quiet := hclog.NewNullLogger()
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: layer, MaxPool: 3, Timeout: 2 * time.Second, Logger: quiet,
	})
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(name)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 300*time.Millisecond, 300*time.Millisecond, 150*time.Millisecond
	cfg.Logger = quiet
	fsm := &logFSM{applied: make(chan string, 16)}
	store := raft.NewInmemStore()
	r, err := raft.NewRaft(cfg, fsm, store, store, raft.NewInmemSnapshotStore(), trans)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Shutdown().Error(); err != nil {
			t.Errorf("shut raft down: %v", err)
		}
		if err := trans.Close(); err != nil {
			t.Errorf("close raft transport: %v", err)
		}
		mux.stop()
	})
	return &raftNode{Raft: r, fsm: fsm, addr: trans.LocalAddr()}
}

func TestRaftElectsAndReplicatesOverTheOnePort(t *testing.T) {
	for family, listen := range loopbacks(t) {
		t.Run(family, func(t *testing.T) { electAndReplicate(t, listen) })
	}
}

func electAndReplicate(t *testing.T, listen string) {
	checkLeaks(t)
	ca := newTestCA(t)
	onLoopback := func(c *MuxConfig) { c.Address = netip.AddrPortFrom(netip.MustParseAddr(listen), 0).String() }
	names := map[string]string{}
	owner := func(addr string) string { return names[addr] }
	a, b := startRaft(t, ca, "lb1", owner, onLoopback), startRaft(t, ca, "lb2", owner, onLoopback)
	names[string(a.addr)], names[string(b.addr)] = "lb1", "lb2"
	servers := raft.Configuration{Servers: []raft.Server{{ID: "lb1", Address: a.addr}, {ID: "lb2", Address: b.addr}}}
	if err := a.BootstrapCluster(servers).Error(); err != nil {
		t.Fatal(err)
	}
	leader := func() *raftNode {
		for _, n := range []*raftNode{a, b} {
			if n.State() == raft.Leader {
				return n
			}
		}
		return nil
	}
	eventually(t, 15*time.Second, "a leader", func() bool { return leader() != nil })
	if err := leader().Apply([]byte("one"), 5*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	a.fsm.wait(t, "one")
	b.fsm.wait(t, "one")

	first := leader()
	if err := first.LeadershipTransfer().Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "another leader", func() bool { l := leader(); return l != nil && l != first })
	if err := leader().Apply([]byte("two"), 5*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	a.fsm.wait(t, "two")
	b.fsm.wait(t, "two")
}

func TestRaftLayerRefusesAnAddressThatLeadsToAnotherMember(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb2"), serveEcho(ALPNRaft))
	var layer *RaftLayer
	startMux(t, newTestIdentity(t, ca, "lb1"), func(m *Mux) { layer = NewRaftLayer(m, m.Addr()) })
	layer.NodeName = func(string) string { return "lb3" }
	_, err := layer.Dial(raft.ServerAddress(server.addr()), time.Second)
	wantError(t, err, "the node there is lb2, not lb3")
	layer.NodeName = nil
	conn, err := layer.Dial(raft.ServerAddress(server.addr()), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
