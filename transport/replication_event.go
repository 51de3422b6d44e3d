package transport

import "time"

// ReplicationEventKind says what happened to a stream.
type ReplicationEventKind string

// The kinds of events.
const (
	// ReplicationEventStreaming: a first full copy is complete; from now on only
	// changes travel.
	ReplicationEventStreaming ReplicationEventKind = "streaming"
	// ReplicationEventBehind: the peer no longer gets every change, a snapshot follows.
	ReplicationEventBehind ReplicationEventKind = "behind"
	// ReplicationEventResync: a snapshot after the first is complete.
	ReplicationEventResync ReplicationEventKind = "resync"
	// ReplicationEventRepaired: buckets that differed were sent anew and applied.
	ReplicationEventRepaired ReplicationEventKind = "repaired"
	// ReplicationEventOrphans: the peer was given what it seemed to lack of an owner
	// that died.
	ReplicationEventOrphans ReplicationEventKind = "orphans"
	// ReplicationEventRefused: the two nodes cannot replicate to each other. It is
	// told once for each reason, not for each attempt.
	ReplicationEventRefused ReplicationEventKind = "refused"
	// ReplicationEventDown: a stream that ran has ended.
	ReplicationEventDown ReplicationEventKind = "down"
)

// ReplicationEvent is something that happened to a stream.
type ReplicationEvent struct {
	Peer    string
	Kind    ReplicationEventKind
	Inbound bool   // it is about the stream from the peer, not the one to it
	Text    string // for a person, with the cause

	Records uint64        // of the snapshot or the repair, or dropped when behind
	Buckets int           // of the repair
	Took    time.Duration // of the snapshot or the repair
}

func (r *Replicator) tell(e ReplicationEvent) {
	if r.cfg.OnEvent != nil {
		r.cfg.OnEvent(e)
	}
}

// ReplicationCause is why a peer got a snapshot again.
type ReplicationCause string

// The causes of a resync.
const (
	// ReplicationCauseReconnect: the stream before it ended.
	ReplicationCauseReconnect ReplicationCause = "reconnect"
	// ReplicationCauseOverflow: the peer was more than QueueRecords behind.
	ReplicationCauseOverflow ReplicationCause = "overflow"
	// ReplicationCauseOverrun: the producer lost records before they came here.
	ReplicationCauseOverrun ReplicationCause = "overrun"
)

// ReplicationResync describes a snapshot after a peer's first.
type ReplicationResync struct {
	Cause ReplicationCause `json:"cause"`
	Text  string           `json:"text,omitempty"` // the error or reason behind the cause
	At    time.Time        `json:"at"`             // when it was begun
}
