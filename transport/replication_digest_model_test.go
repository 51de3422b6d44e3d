package transport

import (
	"context"
	"iter"
	"maps"
	"time"
)

// replTestBuckets is small, so that most buckets hold several records.
const replTestBuckets = 16

func replTestBucket(key uint64) uint32 { return uint32(key % replTestBuckets) }

// replTestSum is the digest of a table.
func replTestSum(table map[uint64]uint64) []uint64 {
	sums := make([]uint64, replTestBuckets)
	for key, version := range table {
		h := (key*0x9e3779b97f4a7c15 ^ version) * 0xff51afd7ed558ccd
		sums[replTestBucket(key)] ^= (h ^ h>>32) * 0xc4ceb9fe1a85ec53
	}
	return sums
}

var _ ReplicationDigests = (*replTable)(nil)

// replWithDigests has a node compare often.
func replWithDigests(c *ReplicationConfig, m *replTable) {
	c.Digests, c.DigestInterval, c.DigestConfirm = m, 4*time.Millisecond, 2*time.Millisecond
}

func (m *replTable) Digest(context.Context) ([]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return replTestSum(m.own), nil
}

func (m *replTable) DigestOf(_ context.Context, peer string) ([]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return replTestSum(m.replicas[peer]), nil
}

func (m *replTable) SnapshotOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error] {
	wanted := map[uint32]bool{}
	for _, b := range buckets {
		wanted[b] = true
	}
	return m.snapshot(ctx, func(key uint64) bool { return wanted[replTestBucket(key)] })
}

func (m *replTable) RepairBegin(peer string, buckets []uint32) {
	defer m.enter(peer, "repair begin")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.named[peer] != nil && m.repairs[peer] == nil {
		m.fail("a repair from %s begins within a snapshot", peer)
	}
	m.named[peer], m.repairs[peer] = map[uint64]bool{}, map[uint32]bool{}
	for _, b := range buckets {
		m.repairs[peer][b] = true
	}
}

func (m *replTable) RepairEnd(_ context.Context, peer string) error {
	defer m.enter(peer, "repair end")()
	m.mu.Lock()
	defer m.mu.Unlock()
	buckets := m.repairs[peer]
	if buckets == nil {
		m.fail("a repair from %s ends that was not begun", peer)
	}
	maps.DeleteFunc(m.replicas[peer], func(k, _ uint64) bool { return buckets[replTestBucket(k)] && !m.named[peer][k] })
	m.named[peer] = nil
	delete(m.repairs, peer)
	return nil
}

// rot changes a replica behind everybody's back.
func (m *replTable) rot(peer string, change func(replica map[uint64]uint64)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.replicas[peer] == nil {
		m.replicas[peer] = map[uint64]uint64{}
	}
	change(m.replicas[peer])
}
