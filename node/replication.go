package node

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
	"pontoon/web"
)

// replication puts what the stream layer knows of a peer into the API's form.
func replication(r transport.ReplicationStatus) web.PeerReplication {
	out := web.PeerReplication{
		Peer: fsm.NodeID(r.Peer), State: web.ReplicationState(r.State), Since: r.Since,
		Sent: r.Sent, Acked: r.Acked, Abandoned: r.Abandoned,
		LagMS: r.LagMS, LagP50MS: r.LagP50MS, LagP99MS: r.LagP99MS, LagRecords: r.LagRecords,
		Resyncs: r.Resyncs, Dropped: r.Dropped, ResyncCauses: map[string]uint64{},
		Snapshot: web.SnapshotFigures{MS: r.SnapshotMS, Records: r.SnapshotRecords},
		Digest:   web.DigestFigures{Rounds: r.DigestRounds, BucketsRepaired: r.BucketsRepaired, RecordsRepaired: r.RecordsRepaired, OrphanRounds: r.OrphanRounds, OrphansSent: r.OrphansSent},
		Protocol: r.Protocol, RecordVersion: r.RecordVersion, LastError: r.LastError,
		Inbound: web.InboundReplication{
			State: web.ReplicationState(r.Inbound), Since: r.InboundSince, Received: r.Received, AppliedPerSecond: r.AppliedPerSecond,
			Snapshots: r.InboundSnapshots, Repairs: r.InboundRepairs, Orphans: r.InboundOrphans, RecordVersion: r.InboundRecordVersion, LastError: r.InboundError,
		},
	}
	for cause, n := range r.ResyncCauses {
		out.ResyncCauses[string(cause)] = n
	}
	if last := r.LastResync; last != nil {
		out.LastResync = &web.Resync{Cause: string(last.Cause), Text: last.Text, At: last.At}
	}
	return out
}

// replicationEvent tells operators what happened to a stream.
func (m *member) replicationEvent(e transport.ReplicationEvent) {
	m.events.add(replicationText(e))
}

func replicationText(e transport.ReplicationEvent) Event {
	way := "flows to " + e.Peer
	if e.Inbound {
		way = "flows from " + e.Peer
	}
	fields := map[string]string{"kind": string(e.Kind), "inbound": strconv.FormatBool(e.Inbound)}
	if e.Records > 0 {
		fields["records"] = strconv.FormatUint(e.Records, 10)
	}
	if e.Buckets > 0 {
		fields["buckets"] = strconv.Itoa(e.Buckets)
	}
	if e.Took > 0 {
		fields["took_ms"] = strconv.FormatInt(e.Took.Round(time.Millisecond).Milliseconds(), 10)
	}
	text := fmt.Sprintf("%s: %s", way, e.Kind)
	if e.Text != "" {
		text += ": " + e.Text
	}
	return Event{Kind: web.EventReplication, Node: fsm.NodeID(e.Peer), Text: text, Fields: fields}
}

// CompareFlows implements web.Backend.
func (d *daemon) CompareFlows(ctx context.Context) ([]web.FlowComparison, error) {
	m, err := d.current()
	if err != nil || m.dp == nil {
		return nil, err
	}
	var out []web.FlowComparison
	for _, r := range m.repl.Status() {
		c := web.FlowComparison{Peer: fsm.NodeID(r.Peer)}
		found, err := m.repl.Compare(ctx, r.Peer)
		if err != nil {
			c.Error = err.Error()
		} else {
			c.Buckets, c.Differ, c.Equal = found.Buckets, len(found.Differ), len(found.Differ) == 0
		}
		out = append(out, c)
	}
	return out, nil
}

func replicationMetrics(r web.PeerReplication, gauge, counter metricFunc) {
	p := string(r.Peer)
	gauge("replication_streaming", "1 while the peer has everything and gets changes.", truth(r.State == web.ReplicationStreaming), "peer", p)
	gauge("replication_lag_seconds", "Age of the oldest record the peer has not acknowledged.", r.LagMS/1000, "peer", p)
	gauge("replication_lag_records", "Records the peer has not acknowledged.", float64(r.LagRecords), "peer", p)
	gauge("replication_lag_quantile_seconds", "Time to acknowledgement of the changes of the last minute.", r.LagP50MS/1000, "peer", p, "quantile", "0.5")
	gauge("replication_lag_quantile_seconds", "Time to acknowledgement of the changes of the last minute.", r.LagP99MS/1000, "peer", p, "quantile", "0.99")
	counter("replication_sent_records_total", "Records sent, those included that a broken stream took with it.", float64(r.Sent+r.Abandoned), "peer", p)
	counter("replication_acked_records_total", "Records acknowledged.", float64(r.Acked), "peer", p)
	counter("replication_resyncs_total", "Snapshots sent anew.", float64(r.Resyncs), "peer", p)
	for cause, n := range r.ResyncCauses {
		counter("replication_resync_causes_total", "Snapshots sent anew, by cause.", float64(n), "peer", p, "cause", cause)
	}
	counter("replication_dropped_records_total", "Records dropped for a slow peer.", float64(r.Dropped), "peer", p)
	counter("replication_digest_rounds_total", "Comparisons of what the peer holds with what is here.", float64(r.Digest.Rounds), "peer", p)
	counter("replication_repaired_buckets_total", "Parts of the flow table that differed and were sent anew.", float64(r.Digest.BucketsRepaired), "peer", p)
	counter("replication_repaired_records_total", "Records sent anew because of a difference.", float64(r.Digest.RecordsRepaired), "peer", p)
	counter("replication_orphan_rounds_total", "Comparisons of what this node and the peer hold of nodes that died.", float64(r.Digest.OrphanRounds), "peer", p)
	counter("replication_orphan_records_total", "Records of nodes that died which the peer was sent because it held something else.", float64(r.Digest.OrphansSent), "peer", p)
	gauge("replication_inbound_streaming", "1 while this node has all of the peer's flows and gets changes.", truth(r.Inbound.State == web.ReplicationStreaming), "peer", p)
	counter("replication_received_records_total", "Records of the peer written here.", float64(r.Inbound.Received), "peer", p)
}
