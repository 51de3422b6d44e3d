package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"pontoon/transport"
)

// membership is member.json: that this machine is in a cluster, and as what.
// It is written last when joining and removed first when leaving, so that a
// half-done step is never taken for a membership.
type membership struct {
	ClusterID string `json:"cluster_id"`
	Name      string `json:"name"`
	Role      string `json:"role"`
	Address   string `json:"address"`
	Slot      uint8  `json:"slot"`
	// Died is the last verdict of death this node has drawn its conclusion
	// from: its flow table had to be brought up to date again.
	Died uint64 `json:"died,omitempty"`
	// Deaths are the last verdicts of death of all members, by slot, that the data
	// plane was told of. A peer that dies while this daemon is down is noticed by it.
	Deaths deaths `json:"deaths,omitempty"`
	// Superseded says that the cluster was rebuilt without this node.
	Superseded bool `json:"superseded,omitempty"`
}

const memberFile = "member.json"

func raftDir(dataDir string) string { return filepath.Join(dataDir, "raft") }

// loadMembership returns fs.ErrNotExist (wrapped) on a machine in no cluster.
func loadMembership(dataDir string) (membership, error) {
	var ms membership
	b, err := os.ReadFile(filepath.Join(dataDir, memberFile))
	if err != nil {
		return ms, fmt.Errorf("read membership: %w", err)
	}
	if err := json.Unmarshal(b, &ms); err != nil {
		return ms, fmt.Errorf("read membership in %s: %w", dataDir, err)
	}
	return ms, nil
}

func (ms membership) save(dataDir string) error {
	b, err := json.MarshalIndent(ms, "", "  ")
	if err != nil {
		return fmt.Errorf("encode membership: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dataDir, memberFile), b, 0o600, renameio.WithTempDir(dataDir)); err != nil {
		return fmt.Errorf("save membership: %w", err)
	}
	return nil
}

// updateMembership changes member.json, once there is one: while this node
// joins or leaves there is none, and nothing to change.
func (m *member) updateMembership(change func(*membership)) error {
	m.fileMu.Lock()
	defer m.fileMu.Unlock()
	ms, err := loadMembership(m.cfg.DataDir)
	if err != nil {
		return err
	}
	change(&ms)
	return ms.save(m.cfg.DataDir)
}

// check refuses to go on as somebody else: name, role and address are known to
// the other nodes and cannot be changed behind their back.
func (ms membership) check(c Config) error {
	var errs []error
	for _, v := range []struct{ key, was, is string }{
		{"name", ms.Name, c.Name}, {"role", ms.Role, c.Role}, {"cluster.address", ms.Address, c.Cluster.Address},
	} {
		if v.was != v.is {
			errs = append(errs, fmt.Errorf("%s is %q, but this machine joined its cluster as %q: put it back, or leave and join again", v.key, v.is, v.was))
		}
	}
	return errors.Join(errs...)
}

// forget removes every trace of a cluster from the data directory.
func forget(dataDir string) error {
	err := os.Remove(filepath.Join(dataDir, memberFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, dropRecovery(dataDir), transport.RemoveCAKey(dataDir), transport.RemoveIdentity(dataDir), os.RemoveAll(raftDir(dataDir)))
}

// syncDir returns when the names in the directory are on the disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// lockDataDir keeps a second daemon away from the same files.
func lockDataDir(dataDir string) (*os.File, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dataDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory %s is in use by another daemon: stop it, or name another with --data-dir", dataDir), f.Close())
	}
	return f, nil
}
