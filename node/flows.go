package node

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/transport"
	"pontoon/web"
)

// flowSink writes what peers send into this node's data plane, and flowSource
// reads from it what a joiner must have. Both translate only between a peer's
// name and its slot, the name flows carry.
type (
	flowSink struct {
		m     *member
		mu    sync.Mutex
		begun map[string]uint8 // the slot under which a peer's last snapshot was begun
	}
	flowSource struct{ dp *bpf.Dataplane }
)

var (
	_ transport.ReplicationSink    = (*flowSink)(nil)
	_ transport.ReplicationSource  = flowSource{}
	_ transport.ReplicationDigests = (*flowSink)(nil)
	_ transport.ReplicationOrphans = (*flowSink)(nil)
)

func newFlowSink(m *member) *flowSink { return &flowSink{m: m, begun: map[string]uint8{}} }

// SnapshotBegin implements transport.ReplicationSink.
func (s *flowSink) SnapshotBegin(peer string) {
	slot, ok := s.m.slotOf(peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		delete(s.begun, peer)
		return
	}
	s.begun[peer] = slot
	s.m.dp.BeginSnapshot(slot)
}

// slot is the peer's, if it is still the one its snapshot was begun with. A node
// that was cut off lets in who it does not know yet: it learns of such a peer in
// the middle of the snapshot, of which nobody has taken note then.
func (s *flowSink) slot(peer string) (uint8, error) {
	slot, ok := s.m.slotOf(peer)
	s.mu.Lock()
	begun, noted := s.begun[peer]
	s.mu.Unlock()
	if !ok || !noted || slot != begun {
		return 0, fmt.Errorf("node %s was not known here when its snapshot began, or is no longer the same", peer)
	}
	return slot, nil
}

// Apply implements transport.ReplicationSink.
func (s *flowSink) Apply(ctx context.Context, peer string, records []byte) error {
	if _, err := s.slot(peer); err != nil {
		return err
	}
	res, err := s.m.dp.Import(ctx, records)
	if err != nil {
		s.m.logger.Warn("flows of a peer could not be written", "peer", peer, "err", err)
		return err
	}
	s.m.orphans.Add(uint64(res.Orphans))
	if res.Failed > 0 {
		s.m.logger.Warn("flows of a peer were refused by the data plane", "peer", peer, "failed", res.Failed)
	}
	return nil
}

// SnapshotEnd implements transport.ReplicationSink.
func (s *flowSink) SnapshotEnd(ctx context.Context, peer string) error {
	slot, err := s.slot(peer)
	if err != nil {
		return err
	}
	removed, err := s.m.dp.EndSnapshot(ctx, slot)
	if err != nil {
		return err
	}
	s.m.logger.Info("snapshot of a peer's flows applied", "peer", peer, "removed", removed)
	return nil
}

// Digest implements transport.ReplicationDigests.
func (s *flowSink) Digest(ctx context.Context) ([]uint64, error) {
	return s.m.dp.Digest(ctx, s.m.slot)
}

// DigestOf implements transport.ReplicationDigests.
func (s *flowSink) DigestOf(ctx context.Context, peer string) ([]uint64, error) {
	slot, err := s.slot(peer)
	if err != nil {
		return nil, err
	}
	return s.m.dp.Digest(ctx, slot)
}

// SnapshotOf implements transport.ReplicationDigests.
func (s *flowSink) SnapshotOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error] {
	return s.m.dp.RecordsOf(ctx, buckets)
}

// OrphanView implements transport.ReplicationOrphans.
func (s *flowSink) OrphanView() uint64 { return s.m.dp.OrphanView() }

// OrphanDigest implements transport.ReplicationOrphans.
func (s *flowSink) OrphanDigest(ctx context.Context) (transport.ReplicationOrphanDigest, error) {
	o, err := s.m.dp.OrphanDigest(ctx)
	return transport.ReplicationOrphanDigest(o), err
}

// OrphansOf implements transport.ReplicationOrphans.
func (s *flowSink) OrphansOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error] {
	return s.m.dp.OrphanRecordsOf(ctx, buckets)
}

// RepairBegin implements transport.ReplicationDigests. A peer that is not known
// any more is told so by RepairEnd.
func (s *flowSink) RepairBegin(peer string, buckets []uint32) {
	if slot, err := s.slot(peer); err == nil {
		s.m.dp.BeginRepair(slot, buckets)
	}
}

// RepairEnd implements transport.ReplicationDigests.
func (s *flowSink) RepairEnd(ctx context.Context, peer string) error {
	slot, err := s.slot(peer)
	if err != nil {
		return err
	}
	removed, err := s.m.dp.EndRepair(ctx, slot)
	if err != nil {
		return err
	}
	s.m.logger.Info("repair of a peer's flows applied", "peer", peer, "removed", removed)
	return nil
}

// Snapshot implements transport.ReplicationSource.
func (s flowSource) Snapshot(ctx context.Context) iter.Seq2[[]byte, error] { return s.dp.Records(ctx) }

func (m *member) slotOf(node string) (uint8, bool) {
	n, ok := m.store.State().Node(fsm.NodeID(node))
	return n.Slot, ok && n.Role == fsm.RoleLB
}

// pumpFlows moves what the data plane says from its channel to the streams.
func (m *member) pumpFlows(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case batch := <-m.dp.Events():
			m.repl.Publish(batch)
		case <-m.dp.Lost():
			m.events.add(Event{Kind: web.EventReplication, Text: "flow events were lost between data plane and daemon: all peers get a new snapshot"})
			// What came before the loss goes out before the snapshot that heals
			// it, or it would undo what the snapshot says.
			m.publishWaiting()
			m.repl.Overrun("flow events were lost")
		}
	}
}

// publishWaiting sends what is in the channel now.
func (m *member) publishWaiting() {
	for {
		select {
		case batch := <-m.dp.Events():
			m.repl.Publish(batch)
		default:
			return
		}
	}
}

// watchReplication reports at once when a stream changed: the gate may have opened.
func (m *member) watchReplication(ctx context.Context) error {
	for {
		m.wakeReport()
		select {
		case <-ctx.Done():
			return nil
		case <-m.repl.Changed():
		}
	}
}

// setFlowPeers tells replication and data plane who there is and who lives.
func (m *member) setFlowPeers(s *fsm.State) {
	var peers []transport.ReplicationPeer
	alive := map[uint8]bool{}
	me, member := s.Node(fsm.NodeID(m.cfg.Name))
	member = member && !m.removed() && !m.reborn.waits(time.Now(), false)
	knows := m.reports.states()
	for _, n := range s.Nodes() {
		if n.Role != fsm.RoleLB {
			continue
		}
		alive[n.Slot] = n.Alive
		if member && string(n.Name) != m.cfg.Name && m.reborn.mayTell(me.Died, knows[string(n.Name)]) {
			peers = append(peers, transport.ReplicationPeer{Node: string(n.Name), Address: n.Address})
		}
	}
	m.repl.SetPeers(peers)
	died := false
	if then := m.deaths.missed(s, alive); !maps.Equal(then, alive) {
		died = m.dp.SetOwnersAlive(then)
	}
	if m.dp.SetOwnersAlive(alive) || died {
		m.repl.Bereaved()
	}
}

// inSync is what this node reports of its flow table, at s.
func (m *member) inSync(s *fsm.State) bool {
	if m.dp == nil {
		return true // a witness has no flows to miss
	}
	if me, ok := s.Node(fsm.NodeID(m.cfg.Name)); ok && me.Died != m.died.Load() {
		return false // the driver is about to close the gate
	}
	return m.gate.inSync(time.Now(), m.syncPeers(s), m.contact.everFresh())
}

// syncPeers is the other load balancers at s, and whose flows come in.
func (m *member) syncPeers(s *fsm.State) []syncPeer {
	inbound := map[string]bool{}
	for _, s := range m.repl.Status() {
		inbound[s.Peer] = s.Inbound == "streaming"
	}
	var peers []syncPeer
	for _, n := range s.Nodes() {
		if n.Role == fsm.RoleLB && string(n.Name) != m.cfg.Name {
			peers = append(peers, syncPeer{counts: n.Alive && n.Ready, streaming: inbound[string(n.Name)]})
		}
	}
	return peers
}

// heardAll says whether everybody who may own flows has told this process of all of
// them. In sync it may be without: it took over what an earlier one knew.
func heardAll(peers []syncPeer) bool {
	return !slices.ContainsFunc(peers, func(p syncPeer) bool { return p.counts && !p.streaming })
}
