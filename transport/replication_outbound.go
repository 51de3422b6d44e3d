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

// errReplEnded is wrapped by the error about a stream that the peer ended with a
// goodbye. One whose sink fails does that again and again, at the price of a
// snapshot each time, so it is tried less and less often.
var errReplEnded = errors.New("peer ended the stream")

// replPatience is how long such a peer is left alone at most, in units of the
// longest wait.
const replPatience = 5

// replWorth is how much longer than its snapshot a stream must have run, so that
// one that breaks again and again spends no more than a fifth of the time on
// snapshots.
const replWorth = 4

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

	// round asks the stream for a round of comparison.
	round chan struct{}
	// bereaved asks for a comparison of what is held of owners that died, at once.
	bereaved chan struct{}
	// asks is for comparisons outside of the rounds.
	asks chan replAsk

	mu        sync.Mutex
	state     string
	since     time.Time
	lastError string
	lastLag   int64
	lags      replLags
	window    replWindow
	replFigures
}

// replFigures are what Status reports of a peer, kept over reconnects.
type replFigures struct {
	terms        replTerms // of the running or the last stream
	sent         uint64    // without what is abandoned
	acked        uint64
	abandoned    uint64
	snapshots    uint64
	resyncs      map[ReplicationCause]uint64
	last         ReplicationResync
	began        time.Time // the running snapshot
	size         uint64    // records of the running snapshot
	snapshotTook time.Duration
	snapshotSize uint64
	rounds       uint64
	compared     uint64
	repairs      uint64
	buckets      uint64
	repaired     uint64
	orphanRounds uint64
	orphans      uint64 // records of dead owners that were sent
}

func newReplPeer(r *Replicator, peer ReplicationPeer) *replPeer {
	return &replPeer{
		r: r, peer: peer, cursor: r.log.addCursor(), done: make(chan struct{}),
		state: ReplicationDown, since: time.Now(), round: make(chan struct{}, 1), bereaved: make(chan struct{}, 1), asks: make(chan replAsk),
		replFigures: replFigures{resyncs: map[ReplicationCause]uint64{}},
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
	cfg := &p.r.cfg
	wait := newReplBackoff(cfg.ReconnectMin, cfg.ReconnectMax)
	turnedAway := newReplBackoff(cfg.ReconnectMin, replPatience*cfg.ReconnectMax)
	for {
		err := p.session(ctx)
		ran, worth := p.setDown(err)
		if worth {
			wait.reset()
		}
		if ran > replCalm*cfg.ReconnectMax {
			turnedAway.reset()
		}
		if ctx.Err() != nil {
			return
		}
		pause := wait.next()
		if errors.Is(err, errReplEnded) {
			pause = max(pause, turnedAway.next())
		}
		if !replSleep(ctx, pause) {
			return
		}
	}
}

// session is the life of one connection.
func (p *replPeer) session(ctx context.Context) error {
	conn, terms, err := p.connect(ctx)
	if err != nil {
		return err
	}
	s := newReplStream(p, conn, terms)
	g, streamCtx := errgroup.WithContext(ctx)
	interrupted := replInterrupt(streamCtx, conn, replGoodbye)
	g.Go(func() error { return s.write(streamCtx) })
	g.Go(func() error { return s.readAcks(streamCtx) })
	g.Go(func() error { return s.keepalive(streamCtx) })
	if terms.protocol >= replProtocolDigests {
		g.Go(func() error { return s.compare(streamCtx) })
	}
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

func (p *replPeer) connect(ctx context.Context) (net.Conn, replTerms, error) {
	dialCtx, cancel := context.WithTimeout(ctx, p.r.cfg.StallTimeout)
	defer cancel()
	conn, err := p.r.cfg.Dial(dialCtx, p.peer)
	if err != nil {
		return nil, replTerms{}, fmt.Errorf("dial %s: %w", p.peer.Address, err)
	}
	terms, err := p.greet(dialCtx, conn)
	if err == nil {
		err = replTolerate(conn, p.r.cfg.progressTimeout())
	}
	if err != nil {
		replHardClose(conn, true)
		return nil, replTerms{}, err
	}
	return conn, terms, nil
}

// enter changes the state. It is called with p.mu held.
func (p *replPeer) enter(state string) (changed bool) {
	if p.state == state {
		return false
	}
	p.state, p.since = state, time.Now()
	return true
}

// moved says so.
func (p *replPeer) moved(state string, changed bool) {
	if changed {
		p.r.cfg.Logger.Info("replication to peer: "+state, "peer", p.peer.Node)
		replPoke(p.r.changed)
	}
}

// setDown ends the bookkeeping of a connection. It returns for how long the peer
// had a full copy, and whether that was worth the snapshot: a stream that breaks
// soon after a long one is not opened again at once.
func (p *replPeer) setDown(err error) (ran time.Duration, worth bool) {
	p.r.log.close(p.cursor)
	p.mu.Lock()
	if !p.window.marked.IsZero() {
		ran = time.Since(p.window.marked)
		worth = ran > replWorth*p.snapshotTook
	}
	wasUp := p.state != ReplicationDown
	text := err.Error()
	fresh := text != p.lastError
	lost := p.window.reset()
	p.sent -= lost
	p.abandoned += lost
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
	if errors.Is(err, context.Canceled) {
		return ran, worth
	}
	// A peer that is away is tried every second: say it once.
	if wasUp || fresh {
		p.r.cfg.Logger.Warn("replication to peer: down", "peer", p.peer.Node, "err", err)
	}
	switch {
	case wasUp:
		p.r.tell(ReplicationEvent{
			Peer: p.peer.Node, Kind: ReplicationEventDown, Records: lost,
			Text: "flows no longer go to " + p.peer.Node + ": " + text,
		})
	case fresh && errors.Is(err, ErrReplicationRefused):
		p.r.tell(ReplicationEvent{
			Peer: p.peer.Node, Kind: ReplicationEventRefused,
			Text: "flows cannot go to " + p.peer.Node + ": " + text,
		})
	}
	return ran, worth
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
