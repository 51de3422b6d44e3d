package node

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/transport"
	"pontoon/web"
)

func TestReplicationEventsSayWhatAndWhy(t *testing.T) {
	for want, e := range map[string]transport.ReplicationEvent{
		"flows to lb2: behind: producer overrun: flow events were lost": {Peer: "lb2", Kind: transport.ReplicationEventBehind, Text: "producer overrun: flow events were lost"},
		"flows from lb3: streaming":                                     {Peer: "lb3", Kind: transport.ReplicationEventStreaming, Inbound: true},
	} {
		if got := replicationText(e); got.Text != want || got.Kind != web.EventReplication || string(got.Node) != e.Peer {
			t.Errorf("%+v, want %q", got, want)
		}
	}
	e := replicationText(transport.ReplicationEvent{Peer: "lb2", Kind: transport.ReplicationEventRepaired, Records: 24, Buckets: 2, Took: 1500 * time.Microsecond})
	if e.Fields["records"] != "24" || e.Fields["buckets"] != "2" || e.Fields["took_ms"] != "2" || e.Fields["kind"] != "repaired" || e.Fields["inbound"] != "false" {
		t.Errorf("fields %v", e.Fields)
	}
}

func TestEveryFigureOfAStreamIsInTheStatus(t *testing.T) {
	at := time.Unix(5, 0)
	got := replication(transport.ReplicationStatus{
		Peer: "lb2", State: "streaming", Since: at, Sent: 9, Acked: 8, Abandoned: 7, LagRecords: 6, LagMS: 5, LagP50MS: 4, LagP99MS: 3,
		Resyncs: 2, ResyncCauses: map[transport.ReplicationCause]uint64{transport.ReplicationCauseOverrun: 2},
		LastResync: &transport.ReplicationResync{Cause: transport.ReplicationCauseOverrun, Text: "x", At: at},
		SnapshotMS: 10, SnapshotRecords: 11, Dropped: 12, DigestRounds: 13, BucketsRepaired: 14, RecordsRepaired: 15, OrphanRounds: 23, OrphansSent: 24, Protocol: 16,
		RecordVersion: 17, LastError: "e", Inbound: "snapshot", InboundSince: at, Received: 18, AppliedPerSecond: 19, InboundSnapshots: 20,
		InboundRepairs: 21, InboundOrphans: 25, InboundRecordVersion: 22, InboundError: "f",
	})
	want := web.PeerReplication{
		Peer: "lb2", State: "streaming", Since: at, Sent: 9, Acked: 8, Abandoned: 7, LagRecords: 6, LagMS: 5, LagP50MS: 4, LagP99MS: 3,
		Resyncs: 2, ResyncCauses: map[string]uint64{"overrun": 2}, LastResync: &web.Resync{Cause: "overrun", Text: "x", At: at},
		Snapshot: web.SnapshotFigures{MS: 10, Records: 11}, Dropped: 12,
		Digest:   web.DigestFigures{Rounds: 13, BucketsRepaired: 14, RecordsRepaired: 15, OrphanRounds: 23, OrphansSent: 24},
		Protocol: 16, RecordVersion: 17, LastError: "e",
		Inbound: web.InboundReplication{State: "snapshot", Since: at, Received: 18, AppliedPerSecond: 19, Snapshots: 20, Repairs: 21, Orphans: 25, RecordVersion: 22, LastError: "f"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
