package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

var errReplReplaced = errors.New("replaced by a newer stream")

// replInboundPeer is what this node knows of one peer's streams to it, kept over
// reconnects. Guarded by Replicator.mu.
type replInboundPeer struct {
	current   *replInbound // nil when down
	state     string
	since     time.Time
	terms     replTerms // of the running or the last stream
	lastError string
	snapshots uint64
	repairs   uint64

	mu       sync.Mutex // for what every frame touches
	received uint64
	orphans  uint64 // of received
	rate     replRate
}

// replInbound is one stream from a peer.
type replInbound struct {
	r      *Replicator
	conn   net.Conn
	peer   string
	number uint64 // of all streams, in the order in which they were opened
	terms  replTerms
	view   *replInboundPeer
	cancel context.CancelCauseFunc
	done   chan struct{} // closed after the last call of the sink

	sequence uint64 // of the last frame read
	applied  atomic.Uint64
	progress chan struct{} // applied has grown

	snapshot   bool   // between begin and end
	generation uint64 // of the running snapshot
	repair     uint64 // the open repair, 0 when there is none
	named      uint64 // records of the running snapshot or repair
	orphans    uint64 // records of dead owners since the last end of some, or since the snapshot's begin

	digests       chan replDigest // from read to compare
	orphanDigests chan replDigest // the same
	answers       chan []byte     // from compare to acknowledge: whole frames
}

// Serve takes what a peer sends on conn until the stream ends, and closes conn.
// peer is the authenticated name of the dialling node. Serve returns when the
// stream failed, the peer ended it, ctx ended, or the peer opened a newer one;
// why stands in the log and in Status. The sink is never called after Serve has
// returned.
func (r *Replicator) Serve(ctx context.Context, conn net.Conn, peer string) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	r.served++
	number := r.served
	r.mu.Unlock()
	terms, err := r.answer(ctx, conn, peer)
	if err != nil {
		replHardClose(conn, true)
		r.inboundFailed(peer, err)
		return
	}
	in := &replInbound{
		r: r, conn: conn, peer: peer, number: number, terms: terms, cancel: cancel,
		done: make(chan struct{}), progress: make(chan struct{}, 1),
		digests: make(chan replDigest, 1), orphanDigests: make(chan replDigest, 1), answers: make(chan []byte, 1),
	}
	before, ok := r.enter(in)
	if !ok {
		replHardClose(conn, replSayBye(conn, errReplReplaced.Error()) != nil)
		return
	}
	if before != nil {
		before.cancel(errReplReplaced)
		<-before.done
	}
	err = in.run(ctx)
	close(in.done)
	replHardClose(conn, replSayBye(conn, err.Error()) != nil)
	r.leave(in, err)
}

// enter makes in the peer's current stream and returns the one before it. It does
// not when the peer has opened another since: on a starved machine the greeting of
// a stream that the peer has long given up may be answered last.
func (r *Replicator) enter(in *replInbound) (before *replInbound, ok bool) {
	r.mu.Lock()
	p := r.inboundPeer(in.peer)
	before, ok = p.current, p.current == nil || p.current.number < in.number
	if ok {
		p.current, in.view = in, p
		p.state, p.since, p.lastError, p.terms = ReplicationSnapshot, time.Now(), "", in.terms
	}
	r.mu.Unlock()
	replPoke(r.changed)
	return before, ok
}

func (r *Replicator) leave(in *replInbound, err error) {
	r.mu.Lock()
	p := r.inboundPeer(in.peer)
	ours := p.current == in
	if ours {
		p.current, p.state, p.since, p.lastError = nil, ReplicationDown, time.Now(), err.Error()
		r.pruneInbound(in.peer)
	}
	r.mu.Unlock()
	r.cfg.Logger.Info("replication from peer: ended", "peer", in.peer, "err", err)
	if !ours {
		return
	}
	replPoke(r.changed)
	if !errors.Is(err, context.Canceled) {
		r.tell(ReplicationEvent{
			Peer: in.peer, Kind: ReplicationEventDown, Inbound: true,
			Text: "flows no longer come from " + in.peer + ": " + err.Error(),
		})
	}
}

// inboundFailed notes a stream that did not get past the greeting.
func (r *Replicator) inboundFailed(peer string, err error) {
	r.mu.Lock()
	p := r.inboundPeer(peer)
	fresh := p.lastError != err.Error()
	if p.current == nil {
		p.lastError = err.Error()
		r.pruneInbound(peer)
	}
	r.mu.Unlock()
	if !fresh {
		return
	}
	r.cfg.Logger.Warn("replication from peer: refused", "peer", peer, "err", err)
	if errors.Is(err, ErrReplicationRefused) {
		r.tell(ReplicationEvent{
			Peer: peer, Kind: ReplicationEventRefused, Inbound: true,
			Text: "flows cannot come from " + peer + ": " + err.Error(),
		})
	}
}

// inboundPeer is called with r.mu held.
func (r *Replicator) inboundPeer(peer string) *replInboundPeer {
	p := r.inbound[peer]
	if p == nil {
		p = &replInboundPeer{state: ReplicationDown, since: time.Now()}
		r.inbound[peer] = p
	}
	return p
}

// pruneInbound forgets a peer that is not wanted and has no stream. It is called
// with r.mu held.
func (r *Replicator) pruneInbound(peer string) {
	if p := r.inbound[peer]; p != nil && p.current == nil && r.peers[peer] == nil {
		delete(r.inbound, peer)
	}
}

func (in *replInbound) run(ctx context.Context) error {
	// A stream that was itself replaced while it waited for its predecessor
	// never calls the sink.
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_ = in.conn.SetDeadline(time.Time{})
	g, streamCtx := errgroup.WithContext(ctx)
	interrupted := replInterrupt(streamCtx, in.conn, 0)
	g.Go(func() error { return in.read(streamCtx) })
	g.Go(func() error { return in.acknowledge(streamCtx) })
	if in.terms.protocol >= replProtocolDigests {
		g.Go(func() error { return in.compare(streamCtx) })
	}
	err := g.Wait()
	<-interrupted
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// read applies frame after frame. It is the only caller of the sink.
func (in *replInbound) read(ctx context.Context) error {
	cfg := &in.r.cfg
	rd := bufio.NewReaderSize(in.conn, replFlushBytes)
	var buf []byte
	for {
		_ = in.conn.SetReadDeadline(time.Now().Add(cfg.StallTimeout))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		frame, payload, err := readReplFrame(rd, cfg.RecordSize, buf)
		if err != nil {
			return replStall(ctx, err, cfg.StallTimeout)
		}
		buf = payload
		if frame.typ == replFrameBye {
			return fmt.Errorf("%w: %s", errReplEnded, payload)
		}
		if frame.sequence != in.sequence+1 {
			return fmt.Errorf("frame %d after frame %d: %w", frame.sequence, in.sequence, ErrReplicationMalformed)
		}
		in.sequence = frame.sequence
		if err := in.apply(ctx, frame, payload); err != nil {
			return err
		}
		in.applied.Store(frame.sequence)
		replPoke(in.progress)
	}
}

func (in *replInbound) apply(ctx context.Context, frame replFrame, payload []byte) error {
	switch frame.typ {
	case replFrameKeepalive:
		return nil
	case replFrameSnapshotBegin:
		in.snapshot, in.generation, in.named, in.repair, in.orphans = true, binary.BigEndian.Uint64(payload), 0, 0, 0
		in.setState(ReplicationSnapshot)
		in.r.cfg.Sink.SnapshotBegin(in.peer)
		return nil
	case replFrameRecords:
		return in.applyRecords(ctx, frame, payload)
	case replFrameSnapshotEnd:
		return in.applySnapshotEnd(ctx, payload)
	case replFrameDigest, replFrameRepairBegin, replFrameRepairEnd, replFrameOrphanDigest, replFrameOrphansEnd:
		return in.applyDigests(ctx, frame, payload)
	}
	return fmt.Errorf("frame type %d from the sending side: %w", frame.typ, ErrReplicationMalformed)
}

func (in *replInbound) applyRecords(ctx context.Context, frame replFrame, payload []byte) error {
	// A stream opens with a snapshot: changes before it would be applied to a
	// table nobody vouches for.
	if in.generation == 0 || (frame.flags&replFlagSnapshot != 0 && !in.snapshot && in.repair == 0) {
		return fmt.Errorf("records outside of a snapshot: %w", ErrReplicationMalformed)
	}
	orphans := frame.flags&replFlagOrphans != 0
	if orphans && (in.snapshot || in.repair != 0 || in.terms.protocol < replProtocolOrphans) {
		return fmt.Errorf("records of dead owners within a snapshot or in protocol %d: %w", in.terms.protocol, ErrReplicationMalformed)
	}
	cfg := &in.r.cfg
	if in.terms.version != cfg.RecordVersions[0] {
		if err := cfg.Convert(in.terms.version, cfg.RecordVersions[0], payload); err != nil {
			return fmt.Errorf("convert records from version %d: %w", in.terms.version, err)
		}
	}
	if err := cfg.Sink.Apply(ctx, in.peer, payload); err != nil {
		return fmt.Errorf("apply %d records: %w", frame.count, err)
	}
	if frame.flags&replFlagSnapshot != 0 {
		in.named += uint64(frame.count)
	}
	in.view.mu.Lock()
	if orphans {
		in.orphans += uint64(frame.count)
		in.view.orphans += uint64(frame.count)
	}
	in.view.received += uint64(frame.count)
	in.view.rate.add(in.r.now(), uint64(frame.count))
	in.view.mu.Unlock()
	return nil
}

func (in *replInbound) applySnapshotEnd(ctx context.Context, payload []byte) error {
	generation, records := binary.BigEndian.Uint64(payload), binary.BigEndian.Uint64(payload[8:])
	if !in.snapshot || generation != in.generation || records != in.named {
		return fmt.Errorf("end of snapshot %d with %d records, in snapshot %d with %d: %w",
			generation, records, in.generation, in.named, ErrReplicationMalformed)
	}
	in.snapshot = false
	if err := in.r.cfg.Sink.SnapshotEnd(ctx, in.peer); err != nil {
		return fmt.Errorf("end snapshot: %w", err)
	}
	in.setState(ReplicationStreaming)
	in.r.tell(ReplicationEvent{
		Peer: in.peer, Kind: ReplicationEventStreaming, Inbound: true, Records: records,
		Text: fmt.Sprintf("a full copy of the %d records of %s is here", records, in.peer),
	})
	return nil
}

// setState is for the peer's current stream only: one that is being replaced
// has nothing to say any more.
func (in *replInbound) setState(state string) {
	in.r.mu.Lock()
	p := in.r.inboundPeer(in.peer)
	changed := p.current == in && p.state != state
	if changed {
		p.state, p.since = state, time.Now()
	}
	if state == ReplicationStreaming {
		p.snapshots++
	}
	in.r.mu.Unlock()
	if changed {
		in.r.cfg.Logger.Info("replication from peer: "+state, "peer", in.peer)
		replPoke(in.r.changed)
	}
}

// acknowledge says how far the sink has got, whenever it got further and at
// least once in a keepalive interval. It runs beside the reader so that a sink
// that takes long is told apart from a node that is dead. While it writes,
// further progress gathers into the next acknowledgement.
func (in *replInbound) acknowledge(ctx context.Context) error {
	ticker := time.NewTicker(in.r.cfg.KeepaliveInterval)
	defer ticker.Stop()
	var out []byte
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-in.progress:
		case <-ticker.C:
		case answer := <-in.answers:
			out = append(out, answer...)
		}
		out = appendReplFrame(out, replFrame{typ: replFrameAck, sequence: in.applied.Load()})
		_ = in.conn.SetWriteDeadline(time.Now().Add(in.r.cfg.progressTimeout()))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := in.conn.Write(out); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
		out = out[:0]
	}
}
