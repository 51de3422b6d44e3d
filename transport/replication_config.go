package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// ReplicationConfig is what a Replicator needs. The zero value of a field with
// a default means the default.
type ReplicationConfig struct {
	// Node is this node's name, at most 255 bytes.
	Node string
	// RecordSize is the length of a record in bytes. Default 128.
	RecordSize int
	// RecordVersions are the record layouts spoken here, newest first. Publish,
	// Source and Sink always use the first.
	RecordVersions []uint16
	// Convert rewrites records in place from one version to another. It is
	// needed when RecordVersions has more than one entry, and may run in several
	// goroutines at once.
	Convert func(from, to uint16, records []byte) error
	// Dial opens an authenticated connection to a peer.
	Dial func(ctx context.Context, p ReplicationPeer) (net.Conn, error)
	// Source and Sink are this node's data plane.
	Source ReplicationSource
	Sink   ReplicationSink
	// Digests compares and repairs what the peers hold. Optional: without it this
	// node speaks protocol 1 only, which has no digests.
	Digests ReplicationDigests
	// Orphans compares and completes what this node and its peers hold of owners
	// that died. Optional, and needs Digests: without it protocol 3 is not spoken.
	Orphans ReplicationOrphans
	// DigestVersion names the way Digests and Orphans make their numbers. Nodes with different
	// ones do not compare; they replicate all the same.
	DigestVersion uint32
	// DigestInterval is the time between two rounds of comparison, give or take a
	// tenth. Default 1 minute.
	DigestInterval time.Duration
	// DigestConfirm is the time between the two comparisons of a round: a bucket
	// is repaired at once only if it differs the same way in both. Default 2 s.
	DigestConfirm time.Duration
	// FlushInterval is how long a record may wait for company. Default 2 ms.
	FlushInterval time.Duration
	// BatchRecords is how many records cut a batch at once. Default 256. A batch
	// is at most ReplicationMaxPayload bytes.
	BatchRecords int
	// QueueRecords is how many unsent records a peer may be behind before it is
	// re-synced by a snapshot. The queue is shared by the peers, so this bounds
	// the memory of all of them together. Default 524288 (64 MiB at 128 bytes).
	QueueRecords int
	// ReconnectMin and ReconnectMax bound the doubling wait between two attempts
	// to reach a peer, and between two snapshots. Defaults 50 ms and 1 s.
	ReconnectMin, ReconnectMax time.Duration
	// StallTimeout is how long a stream may be silent before it is down.
	// Default 3 s. Dialling and the greeting take at most as long. A peer that is
	// alive and applies nothing for ten times as long is down too.
	StallTimeout time.Duration
	// KeepaliveInterval is the longest silence this node leaves on a stream.
	// Default 500 ms.
	KeepaliveInterval time.Duration
	// OnEvent is told what happened to a stream. It is called with no lock held by
	// the goroutine that drives the stream, never for a record or a batch: what it
	// takes to return delays that peer. Calls for different peers may run at the
	// same time. Optional.
	OnEvent func(ReplicationEvent)
	// Logger gets state changes. Default: nothing is logged.
	Logger *slog.Logger
}

func (c ReplicationConfig) withDefaults() ReplicationConfig {
	setInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	setDuration := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	setInt(&c.RecordSize, 128)
	setInt(&c.BatchRecords, 256)
	setInt(&c.QueueRecords, 65536*8)
	setDuration(&c.FlushInterval, 2*time.Millisecond)
	setDuration(&c.ReconnectMin, 50*time.Millisecond)
	setDuration(&c.ReconnectMax, time.Second)
	setDuration(&c.StallTimeout, 3*time.Second)
	setDuration(&c.KeepaliveInterval, 500*time.Millisecond)
	setDuration(&c.DigestInterval, time.Minute)
	setDuration(&c.DigestConfirm, 2*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports everything that is wrong with the configuration, with the
// defaults filled in.
func (c ReplicationConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Node != "" && len(c.Node) <= 255, "node name must have 1 to 255 bytes, has %d", len(c.Node))
	check(c.RecordSize > 0, "record size must be positive, is %d", c.RecordSize)
	check(c.BatchRecords > 0 && c.BatchRecords*c.RecordSize <= ReplicationMaxPayload,
		"a batch of %d records of %d bytes must have 1 to %d bytes", c.BatchRecords, c.RecordSize, ReplicationMaxPayload)
	check(c.QueueRecords >= c.BatchRecords, "queue of %d records must hold a batch of %d", c.QueueRecords, c.BatchRecords)
	check(len(c.RecordVersions) > 0 && len(c.RecordVersions) <= replMaxVersions,
		"1 to %d record versions must be spoken, are %d", replMaxVersions, len(c.RecordVersions))
	for _, v := range c.RecordVersions {
		check(v < replProtocolMark, "record version %d is reserved, versions end at %d", v, replProtocolMark-1)
	}
	check(len(c.RecordVersions) < 2 || c.Convert != nil, "several record versions need Convert")
	check(c.Dial != nil, "Dial is missing")
	check(c.Source != nil, "Source is missing")
	check(c.Sink != nil, "Sink is missing")
	check(c.Orphans == nil || c.Digests != nil, "Orphans needs Digests")
	check(c.FlushInterval > 0, "flush interval must be positive, is %v", c.FlushInterval)
	check(c.ReconnectMin > 0 && c.ReconnectMax >= c.ReconnectMin,
		"reconnect waits must be positive and in order, are %v and %v", c.ReconnectMin, c.ReconnectMax)
	check(c.KeepaliveInterval > 0 && c.StallTimeout >= 2*c.KeepaliveInterval,
		"stall timeout %v must be at least two keepalive intervals of %v", c.StallTimeout, c.KeepaliveInterval)
	check(c.DigestInterval > 0 && c.DigestConfirm > 0,
		"digest interval and confirmation must be positive, are %v and %v", c.DigestInterval, c.DigestConfirm)
	if len(errs) > 0 {
		return fmt.Errorf("replication configuration: %w", errors.Join(errs...))
	}
	return nil
}

// progressTimeout is how long a peer that is alive may apply nothing. It is
// long because dropping a million records at a snapshot's end is work, not death.
func (c ReplicationConfig) progressTimeout() time.Duration { return 10 * c.StallTimeout }

// protocols are the stream protocols spoken here, oldest first.
func (c ReplicationConfig) protocols() []uint16 {
	spoken := []uint16{replProtocolPlain}
	if c.Digests != nil {
		spoken = append(spoken, replProtocolDigests)
	}
	if c.Orphans != nil {
		spoken = append(spoken, replProtocolOrphans)
	}
	return spoken
}
