package transport

import (
	"context"
	"iter"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// ReplicationPeer is a node that wants a copy of this node's flow records.
type ReplicationPeer struct {
	Node    string // the peer's name
	Address string // passed to ReplicationConfig.Dial as it is
}

// ReplicationSource yields every record that lives here now, for the snapshot
// a joiner or a peer that fell behind gets.
//
// A chunk is a whole, positive number of records. Two rules carry the proof in
// REPLICATION.md that a snapshot never undoes a newer change:
//
//   - a chunk holds only what was read after the loop asked for it. A source
//     that reads 4096 records at once yields them as one chunk of 4096, not as
//     several smaller ones: the later pieces would be old by the time they are
//     asked for;
//   - a change is visible to Snapshot before it is given to Publish.
//
// A record that lives during the whole iteration must be named at least once;
// naming it twice does no harm. The chunk may be reused after the loop body
// returned. Several iterations may run at the same time, one for each peer.
// An error ends the stream; the peer is dialled and snapshotted again.
type ReplicationSource interface {
	Snapshot(ctx context.Context) iter.Seq2[[]byte, error]
}

// ReplicationSink takes what a peer sent. Calls for one peer come in order and
// never overlap, not even when one stream replaces another; calls for different
// peers run at the same time. An error ends the stream with that peer.
//
// A stream may end after any call: a snapshot or a repair that was begun need not
// be ended. Every stream begins with SnapshotBegin, so what an earlier stream left
// open is replaced before anything else happens for this peer, and SnapshotEnd and
// RepairEnd are only called for what was begun on the same stream. A sink that
// could not take note of the beginning (it does not know the peer yet) must answer
// the next call with an error: the peer will begin again.
type ReplicationSink interface {
	// SnapshotBegin opens a snapshot: everything Apply gets from this peer from
	// here to SnapshotEnd is named. A second SnapshotBegin without a SnapshotEnd
	// throws away what was named so far and starts again, and so it does with a
	// repair that was begun.
	SnapshotBegin(peer string)
	// Apply writes whole records. The slice is reused after Apply returned. The
	// acknowledgement is sent when Apply has returned nil. ctx ends with the stream.
	Apply(ctx context.Context, peer string, records []byte) error
	// SnapshotEnd says that all was named: the sink drops what this peer owned
	// and did not name since SnapshotBegin.
	SnapshotEnd(ctx context.Context, peer string) error
}

// Replicator keeps the flow tables of the peers like this node's own. It knows
// nothing of what is inside a record. All methods may be called from any
// goroutine at any time.
type Replicator struct {
	cfg   ReplicationConfig
	start time.Time
	log   *replLog

	digests replDigester
	orphans replOrphanDigester

	kick    chan struct{} // arms the flush timer
	wanted  chan struct{} // SetPeers was called
	changed chan struct{}

	mu      sync.Mutex
	peers   map[string]*replPeer
	inbound map[string]*replInboundPeer
	served  uint64 // streams that peers opened
}

// NewReplicator checks the configuration. Nothing runs before Run.
func NewReplicator(cfg ReplicationConfig) (*Replicator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Replicator{
		cfg:     cfg,
		start:   time.Now(),
		log:     newReplLog(cfg.RecordSize, cfg.BatchRecords, cfg.QueueRecords),
		digests: replDigester{turn: make(chan struct{}, 1)},
		orphans: replOrphanDigester{turn: make(chan struct{}, 1)},
		kick:    make(chan struct{}, 1),
		wanted:  make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		peers:   map[string]*replPeer{},
		inbound: map[string]*replInboundPeer{},
	}, nil
}

// Run keeps a stream to every wanted peer until ctx ends. It returns nil when
// ctx ended; the failure of a peer is a state of that peer, not an error. It is
// called once.
func (r *Replicator) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.flush(ctx) })
	if r.cfg.Digests != nil {
		g.Go(func() error { return r.rounds(ctx) })
	}
	g.Go(func() error {
		for {
			r.startPeers(ctx, g)
			select {
			case <-ctx.Done():
				return nil
			case <-r.wanted:
			}
		}
	})
	return g.Wait()
}

// flush hands a batch that did not fill up to the peers when its first record
// has waited for the flush interval.
func (r *Replicator) flush(ctx context.Context) error {
	timer := time.NewTimer(r.cfg.FlushInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
			timer.Reset(r.cfg.FlushInterval)
		case <-timer.C:
			r.log.flush()
		}
	}
}

func (r *Replicator) startPeers(ctx context.Context, g *errgroup.Group) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		if p.started {
			continue
		}
		p.started = true
		peerCtx, cancel := context.WithCancel(ctx)
		p.cancel = cancel
		g.Go(func() error {
			defer cancel()
			p.run(peerCtx)
			return nil
		})
	}
}

// SetPeers gives the whole wanted set: streams to new peers are started, streams
// to peers no longer in it are ended, a peer with another address is dialled
// anew. Calling it again with the same set changes nothing. This node itself is
// ignored. Of two entries with one name the last counts.
func (r *Replicator) SetPeers(peers []ReplicationPeer) {
	want := make(map[string]ReplicationPeer, len(peers))
	for _, p := range peers {
		if p.Node != r.cfg.Node {
			want[p.Node] = p
		}
	}
	r.mu.Lock()
	for node, p := range r.peers {
		if want[node] != p.peer {
			p.stop()
		}
		if _, ok := want[node]; !ok {
			delete(r.peers, node)
			r.pruneInbound(node)
		}
	}
	for node, peer := range want {
		old := r.peers[node]
		if old != nil && old.peer == peer {
			continue
		}
		p := newReplPeer(r, peer)
		if old != nil && old.started {
			p.predecessor = old.done
		} else if old != nil {
			p.predecessor = old.predecessor
		}
		r.peers[node] = p
	}
	r.mu.Unlock()
	replPoke(r.wanted)
	replPoke(r.changed)
}

// Publish queues changed records for every peer that has a stream. It copies
// them and never waits for a peer: one that cannot follow within QueueRecords is
// marked behind and re-synced by a snapshot. records are whole records, oldest
// first; a change must be visible to ReplicationSource.Snapshot before it is
// published. Calls may come from several goroutines; the order between them is
// the order in which they get the queue.
func (r *Replicator) Publish(records []byte) {
	if rest := len(records) % r.cfg.RecordSize; rest != 0 {
		r.cfg.Logger.Error("replication: published bytes are not whole records, the rest is left out", "rest", rest)
		records = records[:len(records)-rest]
	}
	if len(records) == 0 {
		return
	}
	arm, overflowed := r.log.append(records, r.now())
	if arm {
		replPoke(r.kick)
	}
	if overflowed {
		replPoke(r.changed)
	}
}

// Overrun says that the producer lost records: what is queued is thrown away and
// every peer is re-synced by a snapshot. Call it after everything that was
// produced before the loss has been published: an older change published later
// would undo what the snapshot said. Losses in quick succession cost one
// snapshot each second at most.
func (r *Replicator) Overrun(reason string) {
	r.cfg.Logger.Warn("replication: records were lost, every peer is re-synced", "reason", reason)
	r.log.overrun(reason)
	replPoke(r.changed)
}

// Changed signals that the state of some peer changed. Changes are coalesced;
// one reader is served.
func (r *Replicator) Changed() <-chan struct{} { return r.changed }

// now is the age of this replicator on the monotonic clock, in nanoseconds.
func (r *Replicator) now() int64 { return int64(time.Since(r.start)) }

// replPoke wakes the reader of a channel with one slot, or does nothing when it
// is about to wake anyway.
func replPoke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
