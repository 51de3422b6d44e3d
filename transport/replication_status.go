package transport

import (
	"maps"
	"slices"
	"time"
)

// ReplicationStatus is how replication with one peer stands, in both directions.
type ReplicationStatus struct {
	Peer string `json:"peer"`

	// State of the stream to the peer: snapshot, streaming (the peer has applied
	// a whole snapshot and gets every change) or down.
	State string `json:"state"`
	// Sent and Acked count records since the peer was set. What was under way
	// when a stream broke is never acknowledged; the next snapshot covers it.
	Sent  uint64 `json:"sent"`
	Acked uint64 `json:"acked"`
	// LagRecords is how many published or sent records the peer has not
	// acknowledged; 0 while there is no stream.
	LagRecords uint64 `json:"lag_records"`
	// LagMS is the age of the oldest of them in milliseconds, 0 when there is none.
	LagMS float64 `json:"lag_ms"`
	// LastLagMS is how long the last acknowledged batch took from the publication
	// of its first record to its acknowledgement.
	LastLagMS float64 `json:"last_lag_ms"`
	// Resyncs counts the snapshots after the first.
	Resyncs uint64 `json:"resyncs"`
	// Dropped counts changes that a peer with a stream did not get because it had
	// fallen behind. The snapshot that follows makes up for them.
	Dropped   uint64    `json:"dropped"`
	Since     time.Time `json:"since"` // of State
	LastError string    `json:"last_error,omitempty"`

	// Inbound is the state of the stream from the peer: down, snapshot, or
	// streaming (the mark at the snapshot's end was applied here).
	Inbound      string    `json:"inbound"`
	InboundSince time.Time `json:"inbound_since"`
	// Received counts records applied here.
	Received     uint64 `json:"received"`
	InboundError string `json:"inbound_error,omitempty"`
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
			s.Inbound, s.InboundSince, s.Received, s.InboundError = p.state, p.since, p.received, p.lastError
		}
		out = append(out, s)
	}
	return out
}

func (p *replPeer) status(now int64) ReplicationStatus {
	queue := p.r.log.view(p.cursor)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := ReplicationStatus{
		Peer: p.peer.Node, State: p.state, Sent: p.sent, Acked: p.acked,
		LastLagMS: replMillis(p.lastLag), Dropped: queue.dropped, Since: p.since, LastError: p.lastError,
	}
	// The writer may be stuck in a write and not know yet that the queue ran over.
	if queue.behind && s.State == ReplicationStreaming {
		s.State = ReplicationSnapshot
	}
	if p.snapshots > 0 {
		s.Resyncs = p.snapshots - 1
	}
	sent, oldest := p.window.records()
	s.LagRecords = sent + queue.queued
	switch {
	case sent > 0:
		s.LagMS = replMillis(now - oldest)
	case queue.queued > 0:
		s.LagMS = replMillis(now - queue.oldest)
	}
	return s
}

func replMillis(ns int64) float64 { return float64(max(ns, 0)) / float64(time.Millisecond) }
