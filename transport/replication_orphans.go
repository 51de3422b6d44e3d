package transport

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"sync/atomic"
	"time"
)

// ReplicationOrphans completes what the survivors of an owner hold of it: its last
// words may have reached one of them and not the other, and its own digests died
// with it. It speaks of all records whose owner is dead, or was since they were
// last heard of, and that nobody has taken over: the orphans. They are in the same
// buckets as the records of ReplicationDigests. Methods may run for different peers
// at the same time.
type ReplicationOrphans interface {
	// OrphanView names the nodes that are taken for dead here. Two nodes with
	// different views do not mean the same by orphans and do not compare.
	OrphanView() uint64
	// OrphanDigest sums up the orphans held here. The result is the caller's, who
	// shares it between the streams.
	OrphanDigest(ctx context.Context) (ReplicationOrphanDigest, error)
	// OrphansOf yields the orphans in some buckets as records for
	// ReplicationSink.Apply, under the same two rules as ReplicationSource.Snapshot.
	// They must say of themselves what they are: Apply only ever adds by them, or
	// joins two words about the same record in a way that does not depend on which
	// came first. What was taken over or has ended on the receiving side stays so.
	OrphansOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error]
}

// ReplicationOrphanDigest is a digest of all orphans that a node holds.
type ReplicationOrphanDigest struct {
	View    uint64 // under which it was made
	Records uint64
	Sums    []uint64 // one for each bucket
}

const (
	// replOrphansAtOnce is how many records may be sent because of one look alone:
	// some megabytes. More than that must have differed in the same way before.
	replOrphansAtOnce = 1 << 16
	// replMournFirst is the wait after the first look that did not find both nodes
	// equal. It doubles from look to look.
	replMournFirst = 50 * time.Millisecond
	// replMournLeast is for how long after a death there is another look although
	// the nodes were equal: what the dead node had sent may still be on its way.
	replMournLeast = time.Second
	// replMournShare bounds the time spent on looks: a wait is so many times as long
	// as the look before it.
	replMournShare = 10
)

// replOrphanDigester is replDigester for orphans.
type replOrphanDigester struct {
	turn  chan struct{} // guards the rest
	began time.Time
	made  ReplicationOrphanDigest
	seen  uint64 // gifts, when made was begun

	gifts atomic.Uint64 // that came
}

// orphanDigest returns a digest under the present view that was begun a moment
// before the call at the soonest. What is sent and what is answered is the same.
func (r *Replicator) orphanDigest(ctx context.Context) (ReplicationOrphanDigest, error) {
	asked := time.Now()
	d := &r.orphans
	select {
	case <-ctx.Done():
		return ReplicationOrphanDigest{}, ctx.Err()
	case d.turn <- struct{}{}:
	}
	defer func() { <-d.turn }()
	gifts := d.gifts.Load()
	if d.made.Sums != nil && d.seen == gifts && d.made.View == r.cfg.Orphans.OrphanView() && d.began.After(asked.Add(-replDigestShare)) {
		return d.made, nil
	}
	d.began = time.Now()
	made, err := r.cfg.Orphans.OrphanDigest(ctx)
	if err == nil && (len(made.Sums) == 0 || len(made.Sums) > replMaxBuckets) {
		err = fmt.Errorf("%d buckets, there must be 1 to %d", len(made.Sums), replMaxBuckets)
	}
	if err != nil {
		d.made = ReplicationOrphanDigest{}
		return d.made, fmt.Errorf("digest records of dead owners: %w", err)
	}
	d.made, d.seen = made, gifts
	return made, nil
}

// Bereaved says that the death of an owner has become known: what is held of it is
// compared with every peer's at once and completed, and looked at again until both
// are equal. It does not wait for that.
func (r *Replicator) Bereaved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		replPoke(p.bereaved)
	}
}

// replMourning is a series of looks at what this node and a peer hold of dead
// owners. It ends when both are equal, or when the next round is due anyway.
type replMourning struct {
	timer     *time.Timer
	wait      time.Duration
	least     time.Time // no end of the series before then
	last      []replDifference
	suspects  replSuspects
	snapshots uint64
}

// begin begins a series.
func (m *replMourning) begin(least time.Duration) {
	m.wait, m.least, m.last = replMournFirst, time.Now().Add(least), nil
}

// again sets the timer for the next look of the series, if there is to be one.
func (m *replMourning) again(equal bool, took, longest time.Duration) {
	wait := max(m.wait, replMournShare*took)
	if equal {
		wait = max(wait, time.Until(m.least))
	}
	if equal && !time.Now().Before(m.least) || wait > longest {
		m.timer.Stop()
		return
	}
	m.wait *= 2
	m.timer.Reset(wait)
}

// judge says which buckets are to be sent, of about so many records altogether.
func (m *replMourning) judge(now []replDifference, records uint64, buckets int) replVerdict {
	before := m.last
	if records*uint64(len(now))/uint64(buckets) <= replOrphansAtOnce {
		before = now
	}
	m.last = now
	return m.suspects.judge(before, now)
}

// orphanRound begins a series of looks as part of a round of comparison.
func (s *replStream) orphanRound(ctx context.Context) error {
	if s.terms.protocol < replProtocolOrphans {
		return nil
	}
	s.mourning.begin(0)
	return s.look(ctx)
}

// mourn does one look; anew begins a series because an owner has died.
func (s *replStream) mourn(ctx context.Context, anew bool) error {
	if s.terms.protocol < replProtocolOrphans {
		return nil
	}
	if anew {
		s.mourning.begin(replMournLeast)
	}
	return s.look(ctx)
}

// look compares orphans once and sends those of the buckets that differ. A peer
// that is being sent everything gets the orphans among it.
func (s *replStream) look(ctx context.Context) error {
	m := &s.mourning
	began := time.Now()
	snapshots, ok := s.p.streaming()
	if !ok {
		return nil
	}
	if snapshots != m.snapshots {
		m.suspects, m.snapshots = replSuspects{}, snapshots
	}
	mine, err := s.p.r.orphanDigest(ctx)
	if err != nil {
		return s.noDigest(ctx, err)
	}
	equal := mine.Records == 0 // there is nothing to give
	if !equal {
		a, err := s.ask(ctx, replDigest{orphans: true, view: mine.View, sums: mine.Sums})
		if err != nil {
			return err
		}
		if a.status == replDigestCompared {
			equal = len(a.differ) == 0
			v := m.judge(a.differ, mine.Records, len(mine.Sums))
			s.p.orphansCompared()
			if err := s.give(ctx, v, snapshots); err != nil {
				return err
			}
		}
	}
	m.again(equal, time.Since(began), s.p.r.cfg.DigestInterval/2)
	return nil
}

// give has the orphans of some buckets sent and tells of it.
func (s *replStream) give(ctx context.Context, v replVerdict, snapshots uint64) error {
	if now, ok := s.p.streaming(); len(v.repair) == 0 || !ok || now != snapshots {
		return nil
	}
	began := time.Now()
	records, err := s.haveSent(ctx, replRepair{buckets: v.repair, orphans: true})
	if err == nil && records > 0 {
		s.p.gaveOrphans(v, uint64(records), time.Since(began))
	}
	return err
}

// applyOrphansEnd checks that all of a gift has come.
func (in *replInbound) applyOrphansEnd(payload []byte) error {
	number, records := binary.BigEndian.Uint64(payload), binary.BigEndian.Uint64(payload[8:])
	if in.snapshot || in.repair != 0 || number == 0 || records != in.orphans {
		return fmt.Errorf("end of records %d of dead owners with %d records, %d came: %w",
			number, records, in.orphans, ErrReplicationMalformed)
	}
	in.orphans = 0
	in.r.orphans.gifts.Add(1)
	return nil
}

// protocol is the first that has frames of this type.
func (t replFrameType) protocol() uint16 {
	switch {
	case t >= replFrameOrphanDigest:
		return replProtocolOrphans
	case t >= replFrameDigest:
		return replProtocolDigests
	}
	return replProtocolPlain
}

func (p *replPeer) orphansCompared() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orphanRounds++
}

func (p *replPeer) gaveOrphans(v replVerdict, records uint64, took time.Duration) {
	p.mu.Lock()
	p.orphans += records
	p.mu.Unlock()
	p.r.cfg.Logger.Info("replication to peer: gave what is held of dead owners",
		"peer", p.peer.Node, "buckets", len(v.repair), "records", records, "again", v.again)
	p.r.tell(ReplicationEvent{
		Peer: p.peer.Node, Kind: ReplicationEventOrphans, Buckets: len(v.repair), Records: records, Took: took,
		Text: fmt.Sprintf("%s held something else of nodes that died in %d buckets, and was sent the %d records held here",
			p.peer.Node, len(v.repair), records),
	})
}
