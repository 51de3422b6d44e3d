package transport

import (
	"maps"
	"slices"
	"time"
)

// ReplicationStatus is how replication with one peer stands, in both directions.
// Counts run since the peer was set.
type ReplicationStatus struct {
	Peer string `json:"peer"`

	// State of the stream to the peer: snapshot, streaming (the peer has applied
	// a whole snapshot and gets every change) or down.
	State string `json:"state"`
	// Sent counts records that the peer has acknowledged or may still acknowledge,
	// Acked those it has: the difference is under way, and when nothing is, they
	// are equal. Abandoned counts what was under way when a stream broke. It is
	// taken out of Sent, and the next snapshot covers it: Sent+Abandoned only grows.
	Sent      uint64 `json:"sent"`
	Acked     uint64 `json:"acked"`
	Abandoned uint64 `json:"abandoned"`
	// LagRecords is how many published or sent records the peer has not
	// acknowledged; 0 while there is no stream.
	LagRecords uint64 `json:"lag_records"`
	// LagMS is the age of the oldest of them in milliseconds, 0 when there is none.
	LagMS float64 `json:"lag_ms"`
	// LastLagMS is how long the last acknowledged batch took from the publication
	// of its first record to its acknowledgement.
	LastLagMS float64 `json:"last_lag_ms"`
	// LagP50MS and LagP99MS are within what time half, and 99 of 100, of the
	// changes of the last minute were acknowledged, each batch counted with the age
	// of its oldest record; right within 7 %, 0 when there were none. Snapshots and
	// repairs are not counted.
	LagP50MS float64 `json:"lag_p50_ms"`
	LagP99MS float64 `json:"lag_p99_ms"`
	// Resyncs counts the snapshots after the first, ResyncCauses by cause.
	// LastResync is the last of them, nil if there was none.
	Resyncs      uint64                      `json:"resyncs"`
	ResyncCauses map[ReplicationCause]uint64 `json:"resync_causes,omitempty"`
	LastResync   *ReplicationResync          `json:"last_resync,omitempty"`
	// SnapshotMS is how long the last complete snapshot took from its first frame
	// to the acknowledgement of its end, SnapshotRecords how many records it had.
	SnapshotMS      float64 `json:"snapshot_ms"`
	SnapshotRecords uint64  `json:"snapshot_records"`
	// Dropped counts changes that a peer with a stream did not get because it had
	// fallen behind. The snapshot that follows makes up for them.
	Dropped uint64 `json:"dropped"`
	// DigestRounds counts the rounds of comparison, BucketsCompared and
	// BucketsRepaired their buckets, RecordsRepaired what was sent in repairs.
	DigestRounds    uint64 `json:"digest_rounds"`
	BucketsCompared uint64 `json:"buckets_compared"`
	BucketsRepaired uint64 `json:"buckets_repaired"`
	RecordsRepaired uint64 `json:"records_repaired"`
	// OrphanRounds counts the comparisons of what this node and the peer hold of
	// owners that died, OrphansSent the records the peer got because of them.
	OrphanRounds uint64 `json:"orphan_rounds"`
	OrphansSent  uint64 `json:"orphans_sent"`
	// Protocol and RecordVersion were agreed on for the running or the last
	// stream; 0 before the first.
	Protocol      uint16    `json:"protocol"`
	RecordVersion uint16    `json:"record_version"`
	Since         time.Time `json:"since"` // of State
	LastError     string    `json:"last_error,omitempty"`

	// Inbound is the state of the stream from the peer: down, snapshot, or
	// streaming (the mark at the snapshot's end was applied here).
	Inbound      string    `json:"inbound"`
	InboundSince time.Time `json:"inbound_since"`
	// Received counts records applied here, AppliedPerSecond those of the last
	// seven seconds.
	Received         uint64  `json:"received"`
	AppliedPerSecond float64 `json:"applied_per_second"`
	// InboundSnapshots and InboundRepairs count those that were applied to their end.
	InboundSnapshots uint64 `json:"inbound_snapshots"`
	InboundRepairs   uint64 `json:"inbound_repairs"`
	// InboundOrphans counts those among Received that are of owners that died and
	// that the peer held and this node seemed to lack.
	InboundOrphans       uint64 `json:"inbound_orphans"`
	InboundProtocol      uint16 `json:"inbound_protocol"`
	InboundRecordVersion uint16 `json:"inbound_record_version"`
	InboundError         string `json:"inbound_error,omitempty"`
}

// Status says how replication stands with every wanted peer and with every
// other that has a stream to this node, sorted by name.
func (r *Replicator) Status() []ReplicationStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	all := map[string]ReplicationStatus{}
	for node, p := range r.peers {
		all[node] = p.status(now)
	}
	for node := range r.inbound {
		if _, ok := all[node]; !ok {
			all[node] = ReplicationStatus{Peer: node, State: ReplicationDown, Since: r.inbound[node].since}
		}
	}
	out := make([]ReplicationStatus, 0, len(all))
	for _, node := range slices.Sorted(maps.Keys(all)) {
		s := all[node]
		s.Inbound, s.InboundSince = ReplicationDown, s.Since
		if p := r.inbound[node]; p != nil {
			p.status(&s, now)
		}
		out = append(out, s)
	}
	return out
}

// status is called with Replicator.mu held.
func (p *replInboundPeer) status(s *ReplicationStatus, now int64) {
	s.Inbound, s.InboundSince, s.InboundError = p.state, p.since, p.lastError
	s.InboundProtocol, s.InboundRecordVersion = p.terms.protocol, p.terms.version
	s.InboundSnapshots, s.InboundRepairs = p.snapshots, p.repairs
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Received, s.AppliedPerSecond, s.InboundOrphans = p.received, p.rate.perSecond(now), p.orphans
}

func (p *replPeer) status(now int64) ReplicationStatus {
	queue := p.r.log.view(p.cursor)
	p.mu.Lock()
	defer p.mu.Unlock()
	lags := p.lags.quantiles(now, 0.5, 0.99)
	s := ReplicationStatus{
		Peer: p.peer.Node, State: p.state, Since: p.since, LastError: p.lastError,
		Sent: p.sent, Acked: p.acked, Abandoned: p.abandoned, Dropped: queue.dropped,
		LastLagMS: replMillis(p.lastLag), LagP50MS: replMillis(lags[0]), LagP99MS: replMillis(lags[1]),
		ResyncCauses: maps.Clone(p.resyncs),
		SnapshotMS:   replMillis(int64(p.snapshotTook)), SnapshotRecords: p.snapshotSize,
		DigestRounds: p.rounds, BucketsCompared: p.compared, BucketsRepaired: p.buckets, RecordsRepaired: p.repaired,
		OrphanRounds: p.orphanRounds, OrphansSent: p.orphans,
		Protocol: p.terms.protocol, RecordVersion: p.terms.version,
	}
	// The writer may be stuck in a write and not know yet that the queue ran over.
	if queue.behind && s.State == ReplicationStreaming {
		s.State = ReplicationSnapshot
	}
	if p.snapshots > 1 {
		last := p.last
		s.Resyncs, s.LastResync = p.snapshots-1, &last
	}
	s.LagRecords = p.window.open + queue.queued
	switch {
	case p.window.open > 0:
		s.LagMS = replMillis(now - p.window.oldest())
	case queue.queued > 0:
		s.LagMS = replMillis(now - queue.oldest)
	}
	return s
}

func replMillis(ns int64) float64 { return float64(max(ns, 0)) / float64(time.Millisecond) }
