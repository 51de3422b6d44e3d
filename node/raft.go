package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"pontoon/node/stable"
)

// Raft's timers are the fallback, not the detector: starvation of a busy
// two-core machine sets their floor, not the network (design.md §7).
const (
	raftHeartbeat   = 200 * time.Millisecond
	raftElection    = 200 * time.Millisecond
	raftLease       = 200 * time.Millisecond // nothing is fenced by it, and each early end costs a write its certainty
	raftCommit      = 20 * time.Millisecond  // how late an idle follower learns the commit index
	raftRPCTimeout  = time.Second
	raftApply       = 5 * time.Second
	snapshotsKept   = 2
	snapshotEntries = 4096
)

// raftGroup is this node's part in the Raft group, with the files below it.
type raftGroup struct {
	*raft.Raft
	stores    raftStores
	disk      *diskWatch
	over      chan struct{} // closed when it ends: nothing waits for the disk any more
	logs      raft.LogStore // log, with a cache of the newest entries
	transport *raftTransport

	mu      sync.Mutex
	walked  uint64 // up to here the log was searched for commands
	command uint64 // index of the last command at or before walked
}

// raftStores are the files below Raft.
type raftStores struct {
	bolt  *raftboltdb.BoltStore // log
	votes *stable.Store         // term and vote
	snaps raft.SnapshotStore
}

// close closes them; Raft must not run any more.
func (st raftStores) close() error { return errors.Join(st.votes.Close(), st.bolt.Close()) }

func openStores(dir string, hl hclog.Logger) (st raftStores, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return st, fmt.Errorf("make raft directory: %w", err)
	}
	st.bolt, err = raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(dir, "log.db"),
		BoltOptions: &bbolt.Options{
			Timeout: 5 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		},
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return st, fmt.Errorf("open raft log in %s: %w", dir, err)
	}
	// Earlier versions kept term and vote in the log's database, which goes on
	// guarding against their coming back (see node/stable).
	st.votes, err = stable.Open(filepath.Join(dir, "stable"), boltKeys{st.bolt})
	if err != nil {
		return st, errors.Join(fmt.Errorf("open raft term and vote: %w", err), st.bolt.Close())
	}
	st.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hl)
	if err != nil {
		return st, errors.Join(fmt.Errorf("open raft snapshots in %s: %w", dir, err), st.close())
	}
	return st, nil
}

// openRaft starts Raft on the files in dir. With bootstrap the node becomes
// the only voter of a new group; otherwise it goes on with what is on disk, or
// waits to be added by a leader.
func openRaft(dir, name, address string, bootstrap bool, layer raft.StreamLayer, f raft.FSM, logger *slog.Logger) (*raftGroup, error) {
	hl := raftLogger(logger)
	st, err := openStores(dir, hl)
	if err != nil {
		return nil, err
	}
	watch, over := &diskWatch{}, make(chan struct{})
	cache, err := raft.NewLogCache(512, watchedLog{injectLog(dir, st.bolt), watch})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make raft log cache: %w", err), st.close())
	}
	if st.votes.Renewed() {
		logger.Warn("the file of this node's term and vote was missing or damaged; going on from a later term, in which nothing can have been promised", "dir", dir)
	}
	transport := newRaftTransport(networkTransport(layer, hl))
	g := &raftGroup{stores: st, logs: cache, transport: transport, disk: watch, over: over}
	votes := patientVotes{injectVotes(dir, st.votes), watch, over}
	conf := raftConfig(name, hl)
	if bootstrap {
		// Without patience: a disk that takes nothing is reason enough not to begin.
		err = raft.BootstrapCluster(conf, cache, injectVotes(dir, st.votes), st.snaps, transport, onlyVoter(name, address))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("bootstrap raft: %w", err), g.closeFiles())
		}
	}
	if g.Raft, err = raft.NewRaft(conf, f, cache, votes, st.snaps, transport); err != nil {
		return nil, errors.Join(fmt.Errorf("start raft: %w", err), g.closeFiles())
	}
	return g, nil
}

// onlyVoter is the configuration of a group of one.
func onlyVoter(name, address string) raft.Configuration {
	return raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(name), Address: raft.ServerAddress(address)}},
	}
}

func raftConfig(name string, hl hclog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(name)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = raftHeartbeat, raftElection, raftLease
	c.CommitTimeout = raftCommit
	c.SnapshotThreshold = snapshotEntries
	c.Logger = hl
	c.NoLegacyTelemetry = true
	// A leader that was removed goes on as a follower without a vote; whoever
	// removed it, or its operator, ends it.
	c.ShutdownOnRemove = false
	return c
}

func (g *raftGroup) closeFiles() error { return errors.Join(g.transport.Close(), g.stores.close()) }

// boltKeys is the log's database as a stable.Legacy.
type boltKeys struct{ *raftboltdb.BoltStore }

// Get implements stable.Legacy.
func (b boltKeys) Get(key []byte) ([]byte, error) {
	v, err := b.BoltStore.Get(key)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return nil, nil
	}
	return v, err
}

// close stops Raft and only then closes its log: the other way round panics.
func (g *raftGroup) close() error {
	close(g.over)
	return errors.Join(g.Shutdown().Error(), g.closeFiles())
}

// consumed returns an index up to which a state machine that stands at state
// has taken in every command. queued is Raft's AppliedIndex of a moment before
// state was read; it runs ahead, because it counts what was put into the state
// machine's queue, while the state knows of no entry that is not a command.
func (g *raftGroup) consumed(queued, state uint64) uint64 {
	if state >= queued || g.lastCommand(queued) <= state {
		return max(queued, state)
	}
	return state
}

// lastCommand is the index of the last command at or before index. What is no
// longer in the log is in a snapshot, and that was taken from the state machine
// or restored into it as a whole.
func (g *raftGroup) lastCommand(index uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := g.command
	for i := index; i > g.walked; i-- {
		var l raft.Log
		err := g.logs.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			break
		} else if err != nil {
			return i // it may be one
		}
		if l.Type == raft.LogCommand {
			found = i
			break
		}
	}
	g.walked, g.command = max(index, g.walked), found
	return found
}

// spreadTimeout bounds spread: Raft takes an entry at once unless it waits for its disk, and for that nobody waits here.
const spreadTimeout = 100 * time.Millisecond

// spread tells followers without delay that what was committed is: they learn it from the next entry, or after up to twice
// raftCommit.
func (g *raftGroup) spread() { g.Barrier(spreadTimeout) }

// raftInFlight is one request to each follower at a time, whatever else is to be said waits for its answer. With more, which Raft
// calls pipelining, what sends and what reads the answers wait for each other for ever when the reader gives up over a refusal while
// the sender has another request to hand over (v1.7.3, pipelineReplicate): the follower gets nothing until the leader changes, and
// a leader that was never ends.
const raftInFlight = 1

func networkTransport(layer raft.StreamLayer, hl hclog.Logger) *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: hl, Stream: layer, MaxPool: raftPool, Timeout: raftRPCTimeout, MsgpackUseNewTimeFormat: true, MaxRPCsInFlight: raftInFlight,
	})
}

// answerOf asks Raft something and waits for the answer until ctx ends; then the error is the cause of that. Raft never
// answers what it has not looked at yet when it is shut down. So nobody may wait for such an answer without an end, and the
// goroutine that does belongs to no group: the end of a member would wait for it.
func answerOf(ctx context.Context, ask func() raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- ask().Error() }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *raftGroup) isLeader() bool { return g.State() == raft.Leader }

// hasQuorum says whether this node hears from a leader, or is one.
func (g *raftGroup) hasQuorum() bool {
	return g.isLeader() || time.Since(g.LastContact()) < contactLost
}

// servers returns the Raft configuration as Raft last saw it.
func (g *raftGroup) servers() ([]raft.Server, error) {
	f := g.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("read raft configuration: %w", err)
	}
	return f.Configuration().Servers, nil
}

// waitLeader returns the leader's name and address once there is one.
func (g *raftGroup) waitLeader(ctx context.Context) (name, address string, err error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		a, id := g.LeaderWithID()
		if id != "" {
			return string(id), string(a), nil
		}
		select {
		case <-ctx.Done():
			return "", "", ctx.Err()
		case <-tick.C:
		}
	}
}

// raftLogger sends Raft's own log to slog: its warnings repeat at the rate of
// its timers while a peer is down, and what matters of them is an event of
// ours, so all but errors are debug.
func raftLogger(logger *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name: "raft", Level: hclog.Debug, DisableTime: true, Output: raftLogWriter{logger},
	})
}

type raftLogWriter struct{ logger *slog.Logger }

func (w raftLogWriter) Write(p []byte) (int, error) {
	w.logger.Debug(strings.TrimSpace(string(p)), "from", "raft")
	return len(p), nil
}
