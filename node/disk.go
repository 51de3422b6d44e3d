package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
	"pontoon/node/stable"
	"pontoon/web"
)

// A node's part in the agreement is as good as its disk. Raft's heartbeats never touch
// one, so a leader whose disk hangs goes on leading a cluster that can decide nothing;
// and a follower whose disk fails hears everything and keeps nothing. So each write
// below Raft is watched (diskWatch): a node in trouble says so, is not ready to be
// master, and as a leader falls silent, so that the others choose another.
const (
	// diskTick is how long a leader's log rests before it writes something to see
	// whether its disk still takes it.
	diskTick = 750 * time.Millisecond
	// diskPatience is how long a write may take: as long as two ticks. Starved machines
	// and busy disks stay below it, and a hang is noticed soon after a lease is over.
	diskPatience = 2 * diskTick
	// diskLook is the pace of looking.
	diskLook = 100 * time.Millisecond
)

// diskWatch knows how the writes below Raft fare. It is safe for concurrent use.
type diskWatch struct {
	mu      sync.Mutex
	writing map[uint64]time.Time // writes under way, since when
	next    uint64
	ended   time.Time // the newest one
	failed  error     // of the newest one, nil if it went well
}

// begin notes that a write begins; the caller tells end its outcome.
func (d *diskWatch) begin(now time.Time) (end func(now time.Time, err error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writing == nil {
		d.writing = map[uint64]time.Time{}
	}
	id := d.next
	d.next++
	d.writing[id] = now
	return func(now time.Time, err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.writing, id)
		d.ended, d.failed = now, err
	}
}

// trouble says at now what is wrong, "" when nothing is.
func (d *diskWatch) trouble(now time.Time) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, since := range d.writing {
		if now.Sub(since) >= diskPatience {
			return "the disk of the data directory hangs: a write does not end"
		}
	}
	if d.failed != nil {
		return "the disk of the data directory takes no writes: " + d.failed.Error()
	}
	return ""
}

// rests says at now whether no write is under way and none ended of late.
func (d *diskWatch) rests(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.writing) == 0 && now.Sub(d.ended) >= diskTick
}

// watchedLog is Raft's log with its writes watched.
type watchedLog struct {
	raft.LogStore
	watch *diskWatch
}

// StoreLog implements raft.LogStore.
func (l watchedLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (l watchedLog) StoreLogs(logs []*raft.Log) error {
	end := l.watch.begin(time.Now())
	err := l.LogStore.StoreLogs(logs)
	end(time.Now(), err)
	return err
}

// DeleteRange implements raft.LogStore.
func (l watchedLog) DeleteRange(low, high uint64) error {
	end := l.watch.begin(time.Now())
	err := l.LogStore.DeleteRange(low, high)
	end(time.Now(), err)
	return err
}

// voteRetry is the pace at which a failed write of the term is tried again.
const voteRetry = 100 * time.Millisecond

// patientVotes is Raft's stable store for a disk that may fail for a while. Raft
// panics when it cannot write its term, which would end the daemon and with it the
// forwarding's supervision; so a write is tried until it succeeds, and meanwhile Raft
// stands still: it neither votes nor leads, which is what a node without a disk is
// good for. At the end of the member it is given up: the term is not kept then, and
// nothing is promised in it, because the vote, which comes after, fails too.
type patientVotes struct {
	raft.StableStore
	watch *diskWatch
	over  <-chan struct{}
}

// Set implements raft.StableStore.
func (v patientVotes) Set(key, val []byte) error {
	end := v.watch.begin(time.Now())
	err := v.StableStore.Set(key, val) // of the vote, whose failure Raft takes for a no
	end(time.Now(), err)
	return err
}

// SetUint64 implements raft.StableStore.
func (v patientVotes) SetUint64(key []byte, val uint64) error {
	var tick *time.Ticker
	for {
		end := v.watch.begin(time.Now())
		err := v.StableStore.SetUint64(key, val)
		if err == nil || errors.Is(err, stable.ErrClosed) {
			end(time.Now(), nil)
			return nil
		}
		end(time.Now(), err)
		if tick == nil {
			tick = time.NewTicker(voteRetry)
			defer tick.Stop()
		}
		select {
		case <-v.over:
			return nil
		case <-tick.C:
		}
	}
}

// watchDisk tells of trouble with the disk and, while this node leads, keeps the
// cluster from waiting for it.
func (m *member) watchDisk(ctx context.Context) error {
	tick := time.NewTicker(diskLook)
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		trouble := m.raft.disk.trouble(time.Now())
		m.raft.transport.mute(trouble != "" && m.raft.isLeader())
		if trouble != told {
			m.tellDisk(trouble)
			told = trouble
			m.wakeReport()
		}
		if m.raft.isLeader() && m.raft.disk.rests(time.Now()) {
			m.raft.Barrier(diskLook) // nobody waits for it: the write is watched
		}
	}
}

func (m *member) tellDisk(trouble string) {
	if trouble == "" {
		m.logger.Info("the disk of the data directory takes writes again")
		m.events.add(Event{Kind: web.EventDisk, Node: fsm.NodeID(m.cfg.Name), Text: "the disk of the data directory takes writes again"})
		return
	}
	m.logger.Warn("disk in trouble", "err", trouble)
	m.events.add(Event{Kind: web.EventDisk, Node: fsm.NodeID(m.cfg.Name), Text: trouble})
}

// verifyLeader asks a quorum whether this node leads, for as long as it may take.
// Raft answers only between two writes to its disk.
func (m *member) verifyLeader() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), reportTimeout, fmt.Errorf("no word from the quorum within %s", reportTimeout))
	defer cancel()
	return answerOf(ctx, func() raft.Future { return m.raft.VerifyLeader() })
}

// leaderToTell is whom to send this node's report, "" while nobody is known. A node
// whose disk hangs cannot even learn that another leads now; it asks each of the others.
func (m *member) leaderToTell() string {
	_, id := m.raft.LeaderWithID()
	if id != "" && string(id) != m.cfg.Name {
		return string(id)
	}
	if m.raft.disk.trouble(time.Now()) == "" {
		return ""
	}
	var others []string
	for _, n := range m.store.State().Nodes() {
		if string(n.Name) != m.cfg.Name {
			others = append(others, string(n.Name))
		}
	}
	if len(others) == 0 {
		return ""
	}
	return others[int(m.turn.Add(1))%len(others)]
}

// leads says whether this node leads and can do what a leader is for.
func (m *member) leads() bool {
	return m.raft.isLeader() && m.raft.disk.trouble(time.Now()) == ""
}
