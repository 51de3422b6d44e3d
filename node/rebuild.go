package node

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

// A recovery takes three steps, and stopping between any two of them leaves
// either the old group or the new one. recovery.json is written while the old
// group is whole. Rewriting Raft's files (rebuildRaft) is one atomic step: the
// rename of a snapshot. Then the first that this node does when it leads, before
// it proves to anybody that it does, is to commit RecoverCluster; only that makes
// the others members no more. The file says that it has to: without it, a node
// whose group is itself would add the others back, as the state still names them.

// recovery is recovery.json.
type recovery struct {
	// Number is what fsm.Cluster.Recoveries will be.
	Number uint64       `json:"number"`
	Fenced []fsm.NodeID `json:"fenced"`
	At     time.Time    `json:"at"`
}

const recoveryFile = "recovery.json"

// loadRecovery returns nil when none is under way.
func loadRecovery(dataDir string) (*recovery, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, recoveryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read recovery: %w", err)
	}
	var r recovery
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read recovery in %s: %w", dataDir, err)
	}
	return &r, nil
}

func (r recovery) save(dataDir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode recovery: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dataDir, recoveryFile), b, 0o600, renameio.WithTempDir(dataDir)); err != nil {
		return fmt.Errorf("save recovery: %w", err)
	}
	// What follows is in another directory, and must not be on the disk before this is.
	if err := syncDir(dataDir); err != nil {
		return fmt.Errorf("save recovery: %w", err)
	}
	return nil
}

func dropRecovery(dataDir string) error {
	if err := os.Remove(filepath.Join(dataDir, recoveryFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove recovery: %w", err)
	}
	return nil
}

// rebuildRaft makes the node the only voter of a group that begins with all that
// is in its log, also what nobody knows whether it was committed. Raft must not
// run. It returns the last index of the old group's log.
func rebuildRaft(dir, name, address string, logger *slog.Logger) (uint64, error) {
	hl := raftLogger(logger)
	st, err := openStores(dir, hl)
	if err != nil {
		return 0, err
	}
	f := rebuiltStore{newStore()}
	_, transport := raft.NewInmemTransport(raft.ServerAddress(address)) // only encodes addresses
	err = raft.RecoverCluster(raftConfig(name, hl), f, st.bolt, st.votes, st.snaps, transport, onlyVoter(name, address))
	if err != nil {
		err = fmt.Errorf("rebuild the raft group: %w", err)
	}
	return f.State().Index(), errors.Join(err, transport.Close(), st.close())
}

// rebuiltStore makes no snapshot of a log it could not read.
type rebuiltStore struct{ *store }

// Snapshot implements raft.FSM.
func (s rebuiltStore) Snapshot() (raft.FSMSnapshot, error) {
	select {
	case err := <-s.fatal:
		return nil, err
	default:
		return s.store.Snapshot()
	}
}

// resumeRecovery finds out, before the member runs, whether a recovery has to be
// finished. One that was interrupted before it changed the group is dropped.
func (m *member) resumeRecovery() error {
	r, err := loadRecovery(m.cfg.DataDir)
	if err != nil || r == nil {
		return err
	}
	servers, err := m.raft.servers()
	if err != nil {
		return err
	}
	if len(servers) != 1 || string(servers[0].ID) != m.cfg.Name {
		m.logger.Warn("a recovery was interrupted before it changed anything: run it again if it is still needed", "fenced", r.Fenced)
		return dropRecovery(m.cfg.DataDir)
	}
	m.recovery.Store(r)
	return nil
}

// finishRecovery commits what is left to do of a recovery. It returns an error
// while that could not be done; nothing else may be decided before.
func (m *member) finishRecovery() error {
	r := m.recovery.Load()
	if r == nil {
		return nil
	}
	if m.store.State().Cluster().Recoveries < r.Number {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return fmt.Errorf("draw gossip key: %w", err)
		}
		if err := m.commitDuty(fsm.RecoverCluster{Survivor: fsm.NodeID(m.cfg.Name), GossipKey: key}); err != nil {
			return fmt.Errorf("commit the recovery: %w", err)
		}
		m.logger.Warn("the cluster was rebuilt from this node", "fenced", r.Fenced, "gen", m.store.State().Index())
	}
	if err := dropRecovery(m.cfg.DataDir); err != nil {
		return err
	}
	m.recovery.Store(nil)
	return nil
}

// finishRecoveryFirst is finishRecovery, again and again. It returns false when
// this node ceased to lead meanwhile.
func (m *member) finishRecoveryFirst(ctx context.Context) bool {
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		err := m.finishRecovery()
		if err == nil {
			return true
		}
		m.logger.Error("recovery not finished", "err", err)
		select {
		case <-ctx.Done():
			return false
		case <-again.C:
		}
		if !m.raft.isLeader() {
			return false
		}
	}
}

// recoverFacts is what a node knows that is asked to rebuild the cluster.
type recoverFacts struct {
	self    fsm.NodeID
	removed bool // it is no member any more
	led     bool // it leads, or hears a leader
	voter   bool
	others  []fsm.NodeID // by the state or by Raft, sorted
}

// checkRecover returns why the cluster cannot be rebuilt from this node with
// these nodes fenced, or nil.
func checkRecover(f recoverFacts, fenced []fsm.NodeID) error {
	refuse := func(kind error, format string, args ...any) error {
		return &remoteError{kind: kind, text: "cannot recover: " + fmt.Sprintf(format, args...)}
	}
	switch {
	case f.removed:
		return refuse(fsm.ErrInUse, "%s", removedText)
	case f.led:
		return refuse(fsm.ErrInUse, "the cluster has a leader and decides by itself; nodes that are gone are removed with `pontoon node remove`")
	case !f.voter:
		return refuse(fsm.ErrInUse, "%s has no vote, so it may lack much of what was decided: recover on a voter", f.self)
	}
	var unknown, missing []fsm.NodeID
	for _, n := range fenced {
		if !slices.Contains(f.others, n) {
			unknown = append(unknown, n)
		}
	}
	for _, n := range f.others {
		if !slices.Contains(fenced, n) {
			missing = append(missing, n)
		}
	}
	switch {
	case slices.Contains(fenced, f.self):
		return refuse(fsm.ErrInvalid, "%s is this node, which the cluster is to be rebuilt from: name the others", f.self)
	case len(unknown) > 0:
		return refuse(fsm.ErrNotFound, "%s no member of this cluster; its other members are %s", are(unknown), joined(f.others))
	case len(missing) > 0:
		return refuse(fsm.ErrInvalid, "%s not named: whoever is not this node is left behind and has to be fenced first; to be named are %s", are(missing), joined(f.others))
	}
	return nil
}

func joined(names []fsm.NodeID) string {
	text := ""
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			text += " and "
		default:
			text += ", "
		}
		text += string(n)
	}
	return text
}

// are is joined with its verb.
func are(names []fsm.NodeID) string {
	if len(names) == 1 {
		return string(names[0]) + " is"
	}
	return joined(names) + " are"
}
