package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Raft's timers are the fallback, not the detector: starvation of a busy
// two-core machine sets their floor, not the network (design.md §7).
const (
	raftHeartbeat   = 200 * time.Millisecond
	raftElection    = 200 * time.Millisecond
	raftLease       = 200 * time.Millisecond // nothing is fenced by it, and each early end costs a write its certainty
	raftCommit      = 20 * time.Millisecond // how late an idle follower learns the commit index
	raftRPCTimeout  = time.Second
	raftApply       = 5 * time.Second
	snapshotsKept   = 2
	snapshotEntries = 4096
)

// raftGroup is this node's part in the Raft group, with the files below it.
type raftGroup struct {
	*raft.Raft
	log       *raftboltdb.BoltStore
	transport *raft.NetworkTransport
}

// openRaft starts Raft on the files in dir. With bootstrap the node becomes
// the only voter of a new group; otherwise it goes on with what is on disk, or
// waits to be added by a leader.
func openRaft(dir, name, address string, bootstrap bool, layer raft.StreamLayer, f raft.FSM, logger *slog.Logger) (*raftGroup, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make raft directory: %w", err)
	}
	hl := raftLogger(logger)
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(dir, "log.db"),
		BoltOptions: &bbolt.Options{
			Timeout: 5 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		},
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open raft log in %s: %w", dir, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hl)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open raft snapshots in %s: %w", dir, err), bolt.Close())
	}
	cache, err := raft.NewLogCache(512, bolt)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make raft log cache: %w", err), bolt.Close())
	}
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: hl, Stream: layer, MaxPool: 3, Timeout: raftRPCTimeout, MsgpackUseNewTimeFormat: true,
	})
	g := &raftGroup{log: bolt, transport: transport}
	conf := raftConfig(name, hl)
	if bootstrap {
		err = raft.BootstrapCluster(conf, cache, bolt, snaps, transport, raft.Configuration{
			Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(name), Address: raft.ServerAddress(address)}},
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("bootstrap raft: %w", err), g.closeFiles())
		}
	}
	if g.Raft, err = raft.NewRaft(conf, f, cache, bolt, snaps, transport); err != nil {
		return nil, errors.Join(fmt.Errorf("start raft: %w", err), g.closeFiles())
	}
	return g, nil
}

func raftConfig(name string, hl hclog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(name)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = raftHeartbeat, raftElection, raftLease
	c.CommitTimeout = raftCommit
	c.SnapshotThreshold = snapshotEntries
	c.Logger = hl
	c.NoLegacyTelemetry = true
	return c
}

func (g *raftGroup) closeFiles() error { return errors.Join(g.transport.Close(), g.log.Close()) }

// close stops Raft and only then closes its log: the other way round panics.
func (g *raftGroup) close() error {
	return errors.Join(g.Shutdown().Error(), g.closeFiles())
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
