package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
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
	received  uint64
	lastError string
}

// replInbound is one stream from a peer.
type replInbound struct {
	r       *Replicator
	conn    net.Conn
	peer    string
	version uint16
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed after the last call of the sink

	sequence uint64 // of the last frame read
	applied  atomic.Uint64
	progress chan struct{} // applied has grown

	snapshot   bool   // between begin and end
	generation uint64 // of the running snapshot
	named      uint64 // records of the running snapshot
}

// Serve takes what a peer sends on conn until the stream ends, and closes conn.
// peer is the authenticated name of the dialling node. Serve returns when the
// stream failed, the peer ended it, ctx ended, or the peer opened a newer one;
// why stands in the log and in Status. The sink is never called after Serve has
// returned.
func (r *Replicator) Serve(ctx context.Context, conn net.Conn, peer string) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	version, err := r.answer(ctx, conn, peer)
	if err != nil {
		replHardClose(conn, true)
		r.inboundFailed(peer, err)
		return
	}
	in := &replInbound{
		r: r, conn: conn, peer: peer, version: version, cancel: cancel,
		done: make(chan struct{}), progress: make(chan struct{}, 1),
	}
	before := r.enter(in)
	if before != nil {
		before.cancel(errReplReplaced)
		<-before.done
	}
	err = in.run(ctx)
	close(in.done)
	replHardClose(conn, replSayBye(conn, err.Error()) != nil)
	r.leave(in, err)
}

// answer reads the peer's offer and accepts or refuses it.
func (r *Replicator) answer(ctx context.Context, conn net.Conn, peer string) (uint16, error) {
	_ = conn.SetDeadline(time.Now().Add(r.cfg.StallTimeout))
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	protocol, body, err := readReplGreeting(conn)
	if err != nil {
		return 0, err
	}
	version, refusal := r.judge(protocol, body, peer)
	reply := replReply{accepted: refusal == nil, version: version, node: r.cfg.Node}
	if refusal != nil {
		reply.reason = refusal.Error()
	}
	if _, err := conn.Write(appendReplGreeting(nil, replProtocol, reply.encode())); err != nil && refusal == nil {
		return 0, fmt.Errorf("answer greeting: %w", err)
	}
	return version, refusal
}

// judge decides about a peer's offer.
func (r *Replicator) judge(protocol uint16, body []byte, peer string) (uint16, error) {
	if protocol != replProtocol {
		return 0, fmt.Errorf("%s speaks replication protocol %d, %s speaks %d: %w",
			peer, protocol, r.cfg.Node, replProtocol, ErrReplicationRefused)
	}
	offer, err := parseReplOffer(body)
	if err != nil {
		return 0, err
	}
	if offer.node != peer {
		return 0, fmt.Errorf("%s calls itself %q: %w", peer, offer.node, ErrReplicationRefused)
	}
	if offer.recordSize != uint32(r.cfg.RecordSize) {
		return 0, fmt.Errorf("records of %s have %d bytes, those of %s %d: %w",
			peer, offer.recordSize, r.cfg.Node, r.cfg.RecordSize, ErrReplicationRefused)
	}
	return chooseReplVersion(offer.versions, r.cfg.RecordVersions)
}

// enter makes in the peer's current stream and returns the one before it.
func (r *Replicator) enter(in *replInbound) (before *replInbound) {
	r.mu.Lock()
	p := r.inboundPeer(in.peer)
	before, p.current = p.current, in
	p.state, p.since, p.lastError = ReplicationSnapshot, time.Now(), ""
	r.mu.Unlock()
	replPoke(r.changed)
	return before
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
	if ours {
		replPoke(r.changed)
	}
	r.cfg.Logger.Info("replication from peer: ended", "peer", in.peer, "err", err)
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
	if fresh {
		r.cfg.Logger.Warn("replication from peer: refused", "peer", peer, "err", err)
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
			return fmt.Errorf("peer ended the stream: %s", payload)
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
		in.snapshot, in.generation, in.named = true, binary.BigEndian.Uint64(payload), 0
		in.setState(ReplicationSnapshot)
		in.r.cfg.Sink.SnapshotBegin(in.peer)
		return nil
	case replFrameRecords:
		return in.applyRecords(ctx, frame, payload)
	case replFrameSnapshotEnd:
		return in.applySnapshotEnd(ctx, payload)
	}
	return fmt.Errorf("frame type %d from the sending side: %w", frame.typ, ErrReplicationMalformed)
}

func (in *replInbound) applyRecords(ctx context.Context, frame replFrame, payload []byte) error {
	// A stream opens with a snapshot: changes before it would be applied to a
	// table nobody vouches for.
	if !in.snapshot && (frame.flags&replFlagSnapshot != 0 || in.generation == 0) {
		return fmt.Errorf("records outside of a snapshot: %w", ErrReplicationMalformed)
	}
	cfg := &in.r.cfg
	if in.version != cfg.RecordVersions[0] {
		if err := cfg.Convert(in.version, cfg.RecordVersions[0], payload); err != nil {
			return fmt.Errorf("convert records from version %d: %w", in.version, err)
		}
	}
	if err := cfg.Sink.Apply(ctx, in.peer, payload); err != nil {
		return fmt.Errorf("apply %d records: %w", frame.count, err)
	}
	if frame.flags&replFlagSnapshot != 0 {
		in.named += uint64(frame.count)
	}
	in.r.mu.Lock()
	in.r.inboundPeer(in.peer).received += uint64(frame.count)
	in.r.mu.Unlock()
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
		}
		out = appendReplFrame(out[:0], replFrame{typ: replFrameAck, sequence: in.applied.Load()})
		_ = in.conn.SetWriteDeadline(time.Now().Add(in.r.cfg.progressTimeout()))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := in.conn.Write(out); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
	}
}
