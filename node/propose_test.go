package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/internal/roottest"
)

// aloneInMemory is a member that leads a group of itself, whose disk is memory.
func aloneInMemory(t *testing.T) *member {
	t.Helper()
	m := &member{store: newStore(), logger: slog.New(slog.DiscardHandler), cfg: Config{Name: "lb1"}, reports: newReportTable()}
	logs, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	address, transport := raft.NewInmemTransport("192.0.2.1:7400")
	conf := raftConfig("lb1", raftLogger(m.logger))
	if err := raft.BootstrapCluster(conf, logs, logs, snaps, transport, onlyVoter("lb1", string(address))); err != nil {
		t.Fatal(err)
	}
	r, err := raft.NewRaft(conf, m.store, logs, logs, snaps, transport)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Shutdown().Error(); err != nil {
			t.Error(err)
		}
	})
	m.raft = &raftGroup{Raft: r}
	roottest.Eventually(t, "the only node to lead", func() bool { return r.State() == raft.Leader })
	for _, c := range oneNode() {
		b, err := fsm.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.applyIf(proposal{command: b}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// Many that read, change and write back the same at once lose nothing, whatever is written without a condition meanwhile.
func TestConditionalWritesLoseNoChange(t *testing.T) {
	m := aloneInMemory(t)
	const writers, each = 8, 5
	var g errgroup.Group
	for w := range writers {
		g.Go(func() error {
			for i := range each {
				if err := addRule(m, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(w), byte(i), 0}), 24)); err != nil {
					return err
				}
				b, err := fsm.Encode(fsm.PutInstance{Name: fmt.Sprintf("i%d", w), Priorities: map[fsm.NodeID]int{"lb1": i}})
				if err != nil {
					return err
				}
				if _, err := m.applyIf(proposal{command: b}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := len(m.store.State().BGP().Import); n != writers*each {
		t.Errorf("%d rules are there, want %d", n, writers*each)
	}
}

// addRule adds an import rule to what it reads, as often as somebody else is in the way.
func addRule(m *member, p netip.Prefix) error {
	for {
		s := m.store.State()
		cmd := fsm.PutBGP{BGP: s.BGP()}
		cmd.BGP.Import = append([]fsm.ImportRule{{Prefix: p}}, cmd.BGP.Import...)
		want, _ := s.Fingerprint(cmd)
		b, err := fsm.Encode(cmd)
		if err != nil {
			return err
		}
		if _, err := m.applyIf(proposal{b, want}); !errors.Is(err, fsm.ErrChanged) {
			return err
		}
	}
}

func TestAConditionOnWhatReplacesNothingIsRefused(t *testing.T) {
	m := aloneInMemory(t)
	b, err := fsm.Encode(fsm.DrainNode{Node: "lb1", Draining: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.applyIf(proposal{b, "x"}); !errors.Is(err, fsm.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
