package transport

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"
)

// ReplicationDigests compares what a peer holds of this node's records with what
// lives here, and repairs what differs. It catches what no stream can: a record
// that was overtaken on its way, a write that a full table refused, a fault.
//
// The record space is cut into buckets, the same on every node. A digest has one
// number for each, which must not depend on the order of the records nor on
// anything in which a correct replica may differ from its original (ages,
// counters), and on which two nodes with one ReplicationConfig.DigestVersion agree.
// At most 65536 buckets. Methods may run for different peers at the same time.
type ReplicationDigests interface {
	// Digest sums up what this node owns and replicates. The result is the
	// caller's, who shares it between the streams.
	Digest(ctx context.Context) ([]uint64, error)
	// DigestOf sums up what is held here of peer's records. It runs beside Apply.
	DigestOf(ctx context.Context, peer string) ([]uint64, error)
	// SnapshotOf is ReplicationSource.Snapshot for some buckets, under the same
	// two rules.
	SnapshotOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error]
	// RepairBegin opens a repair: what Apply gets from this peer from here to
	// RepairEnd is named. It is one of the calls of ReplicationSink: in order with
	// them and never overlapping. A second one replaces the first; SnapshotBegin
	// ends it without effect. buckets is the callee's to keep, in rising order.
	RepairBegin(peer string, buckets []uint32)
	// RepairEnd drops what the peer owns in the buckets of RepairBegin and did not
	// name since. An error ends the stream.
	RepairEnd(ctx context.Context, peer string) error
}

const (
	// replDigestShare is how old a digest may be that streams share: they confirm
	// at about the same time, and reading a million records takes a second.
	replDigestShare = 250 * time.Millisecond
)

// replDigester makes the digests of this node's own records, one at a time.
type replDigester struct {
	turn  chan struct{} // guards the rest
	began time.Time
	sums  []uint64
}

// digest returns a digest that was begun a moment before the call at the soonest.
func (r *Replicator) digest(ctx context.Context) ([]uint64, error) {
	asked := time.Now()
	d := &r.digests
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case d.turn <- struct{}{}:
	}
	defer func() { <-d.turn }()
	if d.sums != nil && d.began.After(asked.Add(-replDigestShare)) {
		return d.sums, nil
	}
	d.began = time.Now()
	sums, err := r.cfg.Digests.Digest(ctx)
	if err == nil && (len(sums) == 0 || len(sums) > replMaxBuckets) {
		err = fmt.Errorf("%d buckets, there must be 1 to %d", len(sums), replMaxBuckets)
	}
	if err != nil {
		d.sums = nil
		return nil, fmt.Errorf("digest own records: %w", err)
	}
	d.sums = sums
	return sums, nil
}

// rounds asks every stream for a round of comparison, all at the same time so
// that they can share the digest, and nodes at different times.
func (r *Replicator) rounds(ctx context.Context) error {
	for {
		jitter := 0.9 + 0.2*rand.Float64()
		if !replSleep(ctx, time.Duration(jitter*float64(r.cfg.DigestInterval))) {
			return nil
		}
		r.mu.Lock()
		for _, p := range r.peers {
			replPoke(p.round)
		}
		r.mu.Unlock()
	}
}

// replDifference is a bucket in which a peer differs.
type replDifference struct {
	bucket uint32
	xor    uint64 // of both digests
}

// compare does the rounds of one stream, has repaired what they find, and answers
// those who ask.
func (s *replStream) compare(ctx context.Context) error {
	var suspects replSuspects
	s.mourning.timer = time.NewTimer(0)
	defer s.mourning.timer.Stop()
	s.mourning.timer.Stop()
	for seen := uint64(0); ; {
		err := error(nil)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ask := <-s.p.asks:
			err = s.answer(ctx, ask)
		case <-s.p.bereaved:
			err = s.mourn(ctx, true)
		case <-s.mourning.timer.C:
			err = s.mourn(ctx, false)
		case <-s.p.round:
			if err = s.round(ctx, &suspects, &seen); err == nil {
				err = s.orphanRound(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

// round is one round of comparison of this node's own records. seen is how many
// snapshots the peer had got at the last.
func (s *replStream) round(ctx context.Context, suspects *replSuspects, seen *uint64) error {
	snapshots, ok := s.p.streaming()
	if !ok {
		return nil
	}
	if snapshots != *seen { // it healed everything
		*suspects, *seen = replSuspects{}, snapshots
	}
	verdict, err := s.compareTwice(ctx, suspects)
	if err != nil {
		return err
	}
	if now, ok := s.p.streaming(); len(verdict.repair) == 0 || !ok || now != snapshots {
		return nil
	}
	return s.haveRepaired(ctx, verdict)
}

// compareTwice returns the buckets that are to be repaired. The second comparison
// is spared when the first finds nothing.
func (s *replStream) compareTwice(ctx context.Context, suspects *replSuspects) (replVerdict, error) {
	first, size, err := s.compareOnce(ctx)
	if err != nil || size == 0 {
		return replVerdict{}, err
	}
	var second []replDifference
	if len(first) > 0 {
		if !replSleep(ctx, s.p.r.cfg.DigestConfirm) {
			return replVerdict{}, ctx.Err()
		}
		if second, size, err = s.compareOnce(ctx); err != nil || size == 0 {
			return replVerdict{}, err
		}
	}
	s.p.comparedBuckets(size)
	return suspects.judge(first, second), nil
}

// compareOnce sends a digest and waits for the answer. size is the number of
// buckets compared, 0 when that was not possible this time.
func (s *replStream) compareOnce(ctx context.Context) (differ []replDifference, size int, err error) {
	sums, err := s.p.r.digest(ctx)
	if err != nil {
		return nil, 0, s.noDigest(ctx, err)
	}
	a, err := s.ask(ctx, replDigest{sums: sums})
	if err != nil || a.status != replDigestCompared {
		return nil, 0, err
	}
	return a.differ, len(sums), nil
}

// noDigest says that this node could not sum up its records. It is the stream's end
// only when ctx is over.
func (s *replStream) noDigest(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		s.p.r.cfg.Logger.Warn("replication to peer: no comparison", "peer", s.p.peer.Node, "err", err)
	}
	return ctx.Err()
}

// ask sends a digest and waits for the answer. The status is zero when there was none.
func (s *replStream) ask(ctx context.Context, d replDigest) (replDigestAnswer, error) {
	cfg := &s.p.r.cfg
	s.compared++
	d.number, d.version = s.compared, cfg.DigestVersion
	if err := s.control(ctx, d.frame(), appendReplDigest(nil, d), replMarkNone); err != nil {
		return replDigestAnswer{}, err
	}
	timeout := time.NewTimer(cfg.progressTimeout())
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return replDigestAnswer{}, ctx.Err()
		case <-timeout.C:
			cfg.Logger.Warn("replication to peer: no answer to a digest", "peer", s.p.peer.Node)
			return replDigestAnswer{}, nil
		case a := <-s.answers:
			if a.number != d.number {
				continue // late
			}
			if a.status != replDigestCompared && a.status != replDigestNotNow {
				cfg.Logger.Info("replication to peer: no comparison", "peer", s.p.peer.Node, "reason", a.status.String())
			}
			if n := len(a.differ); n > 0 && int(a.differ[n-1].bucket) >= len(d.sums) {
				return replDigestAnswer{}, fmt.Errorf("bucket %d of %d differs: %w", a.differ[n-1].bucket, len(d.sums), ErrReplicationMalformed)
			}
			return a, nil
		}
	}
}

// answered takes the peer's answer to a digest.
func (s *replStream) answered(payload []byte) error {
	if s.terms.protocol < replProtocolDigests {
		return fmt.Errorf("answer to a digest in protocol %d: %w", s.terms.protocol, ErrReplicationMalformed)
	}
	a, err := parseReplDigestAnswer(payload)
	if err != nil {
		return err
	}
	replReplace(s.answers, a)
	return nil
}

// replRepair is a repair to be done by the writer. done gets how many records it
// had, or -1 when it was given up.
type replRepair struct {
	buckets []uint32
	orphans bool // what is held of owners that died, and not this node's own
	done    chan int64
}

// haveRepaired passes buckets to the writer, waits until the peer has applied
// them and tells of it.
func (s *replStream) haveRepaired(ctx context.Context, v replVerdict) error {
	began := time.Now()
	records, err := s.haveSent(ctx, replRepair{buckets: v.repair})
	if err == nil && records >= 0 {
		s.p.repairedBuckets(v, uint64(records), time.Since(began))
	}
	return err
}

// haveSent passes a repair to the writer, waits until the peer has applied it, and
// returns how many records it had: -1 if it was given up, which a snapshot follows.
func (s *replStream) haveSent(ctx context.Context, r replRepair) (records int64, err error) {
	r.done = make(chan int64, 1)
	select {
	case <-s.repaired: // of an earlier one
	default:
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case s.repairs <- r:
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case records = <-r.done:
	}
	if records < 0 {
		return records, nil
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.repaired:
		return records, nil
	}
}

// repair sends some buckets anew while changes go on. It is given up when the
// peer falls behind: everything is sent anew then. Nothing is dropped because of
// orphans, so they need an end, for the count, and no begin.
func (s *replStream) repair(ctx context.Context, r replRepair) error {
	number := s.p.nextRepair()
	flag, last := uint8(replFlagOrphans), replFrameOrphansEnd
	var source iter.Seq2[[]byte, error]
	if r.orphans {
		source = s.p.r.cfg.Orphans.OrphansOf(ctx, r.buckets)
	} else {
		source, flag, last = s.p.r.cfg.Digests.SnapshotOf(ctx, r.buckets), replFlagSnapshot, replFrameRepairEnd
		begin := binary.BigEndian.AppendUint64(nil, number)
		for _, b := range r.buckets {
			begin = binary.BigEndian.AppendUint32(begin, b)
		}
		if err := s.control(ctx, replFrameRepairBegin, begin, replMarkNone); err != nil {
			return err
		}
	}
	records, behind, err := s.chunks(ctx, source, flag, true)
	if err != nil {
		return err
	}
	if behind {
		r.done <- -1
		return nil
	}
	end := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, number), records)
	if err := s.control(ctx, last, end, replMarkRepair); err != nil {
		return err
	}
	r.done <- int64(records)
	return nil
}

func (p *replPeer) nextRepair() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.repairs++
	return p.repairs
}

func (p *replPeer) comparedBuckets(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rounds++
	p.compared += uint64(n)
}

func (p *replPeer) repairedBuckets(v replVerdict, records uint64, took time.Duration) {
	buckets := len(v.repair)
	p.mu.Lock()
	p.buckets += uint64(buckets)
	p.repaired += records
	p.mu.Unlock()
	p.r.cfg.Logger.Info("replication to peer: repaired what differed",
		"peer", p.peer.Node, "buckets", buckets, "records", records, "again", v.again)
	text := fmt.Sprintf("%s differed in %d buckets, %d records were sent anew", p.peer.Node, buckets, records)
	if v.again > 0 {
		text += fmt.Sprintf("; %d of the buckets had been repaired before and still differed: its table may be full", v.again)
	}
	p.r.tell(ReplicationEvent{
		Peer: p.peer.Node, Kind: ReplicationEventRepaired, Buckets: buckets, Records: records, Took: took, Text: text,
	})
}

// replReplace puts v into a channel with one slot in the place of what is there.
// There is one caller for each channel.
func replReplace[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}
