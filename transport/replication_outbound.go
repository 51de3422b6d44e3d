package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// The states of a stream in either direction.
const (
	ReplicationDown      = "down"
	ReplicationSnapshot  = "snapshot"
	ReplicationStreaming = "streaming"
)

// replGoodbye is how long the end of a stream may take once it is decided.
const replGoodbye = 200 * time.Millisecond

// replPeer keeps one outbound stream alive: dial, greet, snapshot, stream, and
// again when it breaks.
type replPeer struct {
	r      *Replicator
	peer   ReplicationPeer
	cursor *replCursor
	done   chan struct{} // closed when run has returned

	// Guarded by Replicator.mu.
	started     bool
	cancel      context.CancelFunc
	predecessor <-chan struct{} // the stream to the same node's former address

	mu        sync.Mutex
	state     string
	since     time.Time
	lastError string
	sent      uint64
	acked     uint64
	snapshots uint64
	lastLag   int64
	window    replWindow
}

func newReplPeer(r *Replicator, peer ReplicationPeer) *replPeer {
	return &replPeer{
		r: r, peer: peer, cursor: r.log.addCursor(), done: make(chan struct{}),
		state: ReplicationDown, since: time.Now(),
	}
}

// stop ends the peer for good. Called with Replicator.mu held.
func (p *replPeer) stop() {
	if p.started {
		p.cancel()
		return
	}
	p.r.log.removeCursor(p.cursor)
}

func (p *replPeer) run(ctx context.Context) {
	defer close(p.done)
	defer p.r.log.removeCursor(p.cursor)
	if p.predecessor != nil {
		select {
		case <-ctx.Done():
			return
		case <-p.predecessor:
		}
	}
	wait := newReplBackoff(p.r.cfg.ReconnectMin, p.r.cfg.ReconnectMax)
	for {
		err := p.session(ctx)
		streamed := p.setDown(err)
		if ctx.Err() != nil {
			return
		}
		if streamed {
			wait.reset()
		}
		if !replSleep(ctx, wait.next()) {
			return
		}
	}
}

// session is the life of one connection.
func (p *replPeer) session(ctx context.Context) error {
	conn, version, err := p.connect(ctx)
	if err != nil {
		return err
	}
	s := &replStream{p: p, conn: conn, version: version, turn: make(chan struct{}, 1)}
	g, streamCtx := errgroup.WithContext(ctx)
	interrupted := replInterrupt(streamCtx, conn, replGoodbye)
	g.Go(func() error { return s.write(streamCtx) })
	g.Go(func() error { return s.readAcks(streamCtx) })
	g.Go(func() error { return s.keepalive(streamCtx) })
	err = g.Wait()
	<-interrupted
	reason := "the node stops replicating"
	if ctx.Err() == nil {
		reason = err.Error()
	}
	s.bye(reason)
	replHardClose(conn, s.broken)
	return err
}

func (p *replPeer) connect(ctx context.Context) (net.Conn, uint16, error) {
	dialCtx, cancel := context.WithTimeout(ctx, p.r.cfg.StallTimeout)
	defer cancel()
	conn, err := p.r.cfg.Dial(dialCtx, p.peer)
	if err != nil {
		return nil, 0, fmt.Errorf("dial %s: %w", p.peer.Address, err)
	}
	version, err := p.greet(dialCtx, conn)
	if err == nil {
		err = replTolerate(conn, p.r.cfg.progressTimeout())
	}
	if err != nil {
		replHardClose(conn, true)
		return nil, 0, err
	}
	return conn, version, nil
}

// greet offers what this node speaks and returns the record version the peer chose.
func (p *replPeer) greet(ctx context.Context, conn net.Conn) (uint16, error) {
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	cfg := &p.r.cfg
	offer := replOffer{recordSize: uint32(cfg.RecordSize), node: cfg.Node, versions: cfg.RecordVersions}
	if _, err := conn.Write(appendReplGreeting(nil, replProtocol, offer.encode())); err != nil {
		return 0, fmt.Errorf("greet: %w", err)
	}
	protocol, body, err := readReplGreeting(conn)
	if err != nil {
		return 0, err
	}
	reply, err := parseReplReply(body)
	if err != nil {
		return 0, err
	}
	if !reply.accepted {
		return 0, fmt.Errorf("%s says: %s: %w", p.peer.Node, reply.reason, ErrReplicationRefused)
	}
	if protocol != replProtocol {
		return 0, fmt.Errorf("peer answers in protocol %d, not %d: %w", protocol, replProtocol, ErrReplicationRefused)
	}
	if reply.node != p.peer.Node {
		return 0, fmt.Errorf("reached node %q instead of %q: %w", reply.node, p.peer.Node, ErrReplicationRefused)
	}
	if _, err := chooseReplVersion([]uint16{reply.version}, cfg.RecordVersions); err != nil {
		return 0, err
	}
	return reply.version, nil
}

// setState is called when the stream moves on. It signals only real changes.
func (p *replPeer) setState(state string) {
	p.mu.Lock()
	changed := p.state != state
	if changed {
		p.state, p.since = state, time.Now()
	}
	p.mu.Unlock()
	if changed {
		p.r.cfg.Logger.Info("replication to peer: "+state, "peer", p.peer.Node)
		replPoke(p.r.changed)
	}
}

// setDown ends the bookkeeping of a connection; streamed says that its peer had
// a full copy.
func (p *replPeer) setDown(err error) (streamed bool) {
	p.r.log.close(p.cursor)
	p.mu.Lock()
	streamed = p.window.marked
	wasUp := p.state != ReplicationDown
	text := err.Error()
	fresh := text != p.lastError
	p.window = replWindow{entries: p.window.entries[:0]}
	if wasUp {
		p.state, p.since = ReplicationDown, time.Now()
	}
	if !errors.Is(err, context.Canceled) {
		p.lastError = text
	}
	p.mu.Unlock()
	if wasUp {
		replPoke(p.r.changed)
	}
	// A peer that is away is tried every second: say it once.
	if (wasUp || fresh) && !errors.Is(err, context.Canceled) {
		p.r.cfg.Logger.Warn("replication to peer: down", "peer", p.peer.Node, "err", err)
	}
	return streamed
}

// replWindow is what was sent on one stream and is not acknowledged yet. It is
// bounded by what the socket buffers of both ends hold.
type replWindow struct {
	entries  []replSent // from first on
	first    int
	sequence uint64 // last sent
	applied  uint64 // last acknowledged
	progress time.Time
	marker   uint64 // sequence of the snapshot's end, 0 when it is not sent
	marked   bool   // some snapshot's end was acknowledged on this stream
}

type replSent struct {
	sequence uint64
	records  uint64
	at       int64 // when its oldest record was published
}

// add puts a frame into the window and returns its sequence.
func (w *replWindow) add(records int, at int64) uint64 {
	if w.first == len(w.entries) {
		w.entries, w.first = w.entries[:0], 0
		w.progress = time.Now()
	} else if w.first > 64 && w.first > len(w.entries)/2 {
		w.entries = w.entries[:copy(w.entries, w.entries[w.first:])]
		w.first = 0
	}
	w.sequence++
	w.entries = append(w.entries, replSent{w.sequence, uint64(records), at})
	return w.sequence
}

// ack removes what the peer has applied and returns how many records that were
// and when the oldest record of the last frame with records was published.
func (w *replWindow) ack(sequence uint64) (records uint64, at int64, err error) {
	if sequence > w.sequence || sequence < w.applied {
		return 0, 0, fmt.Errorf("frame %d acknowledged, %d to %d are open: %w",
			sequence, w.applied, w.sequence, ErrReplicationMalformed)
	}
	if sequence > w.applied {
		w.progress = time.Now()
	}
	w.applied = sequence
	for w.first < len(w.entries) && w.entries[w.first].sequence <= sequence {
		if e := w.entries[w.first]; e.records > 0 {
			records += e.records
			at = e.at
		}
		w.first++
	}
	return records, at, nil
}

// records is how many records are not acknowledged, and when the oldest of them
// was published.
func (w *replWindow) records() (n uint64, oldest int64) {
	for _, e := range w.entries[w.first:] {
		if n == 0 {
			oldest = e.at
		}
		n += e.records
	}
	return n, oldest
}

// replBackoff doubles a wait from min to max.
type replBackoff struct{ min, max, current time.Duration }

func newReplBackoff(low, high time.Duration) *replBackoff {
	return &replBackoff{min: low, max: high, current: low}
}

func (b *replBackoff) next() time.Duration {
	d := b.current
	b.current = min(2*b.current, b.max)
	return d
}

func (b *replBackoff) reset() { b.current = b.min }

// replSleep waits and says whether ctx is still alive.
func replSleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// replInterrupt ends blocked reads and writes when ctx has ended and the grace is
// over. The channel is closed when the deadline is set, so that a later one is
// not overwritten.
func replInterrupt(ctx context.Context, conn net.Conn, grace time.Duration) <-chan struct{} {
	done := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Now().Add(grace))
	})
	return done
}
