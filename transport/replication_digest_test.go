package transport

import (
	"testing"
)

// What no stream told is found by comparison, and only those buckets are sent anew.
func TestReplicationDigestsRepairWhatDiffers(t *testing.T) {
	n := newReplNet(t, false)
	a := n.add("a", func(c *ReplicationConfig, m *replTable) {
		replWithDigests(c, m)
		for k := range uint64(1000) {
			m.put(k, 1)
		}
	})
	b := n.add("b", replWithDigests)
	a.SetPeers([]ReplicationPeer{{"b", "b"}})
	n.awaitEqual(a, b)
	b.table.rot("a", func(replica map[uint64]uint64) {
		delete(replica, 16)
		replica[17] = 9
		replica[5000] = 1 // bucket 8
	})
	n.awaitEqual(a, b)
	replEventually(t, "the repair is counted", func() bool { return a.status("b").BucketsRepaired == 3 })
	s := a.status("b")
	if s.Resyncs != 0 || s.Protocol != 2 || s.RecordsRepaired < 180 || s.RecordsRepaired > 190 || s.DigestRounds == 0 ||
		s.BucketsCompared != s.DigestRounds*replTestBuckets || s.Sent != s.Acked {
		t.Errorf("status %+v", s)
	}
	if got := b.status("a"); got.InboundRepairs == 0 || got.InboundProtocol != 2 {
		t.Errorf("inbound status %+v", got)
	}
}
