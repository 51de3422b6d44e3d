//go:build pontoon_faults

package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
)

// faultsFile, in the data directory, says what is wrong with the disk. Only a build
// with the tag pontoon_faults reads it, for the tests that prove how the product takes
// it. It is read before each write, and again while one hangs.
const faultsFile = "faults.json"

// faults is the content of that file.
type faults struct {
	DelayMS int    `json:"delay_ms"` // how long a write takes
	Error   string `json:"error"`    // why it fails then; "" if it does not
}

// disk is the disk below dir, the directory of Raft's files.
type disk struct{ file string }

func diskOf(dir string) disk { return disk{filepath.Join(filepath.Dir(dir), faultsFile)} }

func (d disk) faults() (f faults) {
	raw, err := os.ReadFile(d.file)
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err != nil {
		return faults{} // no file, or one that is just being written
	}
	return f
}

// write waits and fails as the file says. A hang ends when the file does.
func (d disk) write() error {
	const look = 5 * time.Millisecond
	began := time.Now()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		f := d.faults()
		if time.Since(began) < time.Duration(f.DelayMS)*time.Millisecond {
			<-tick.C
			continue
		}
		if f.Error != "" {
			return errors.New(f.Error)
		}
		return nil
	}
}

type faultyLog struct {
	raft.LogStore
	disk disk
}

func injectLog(dir string, log raft.LogStore) raft.LogStore { return faultyLog{log, diskOf(dir)} }

func (l faultyLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func (l faultyLog) StoreLogs(logs []*raft.Log) error {
	if err := l.disk.write(); err != nil {
		return err
	}
	return l.LogStore.StoreLogs(logs)
}

func (l faultyLog) DeleteRange(low, high uint64) error {
	if err := l.disk.write(); err != nil {
		return err
	}
	return l.LogStore.DeleteRange(low, high)
}

type faultyVotes struct {
	raft.StableStore
	disk disk
}

func injectVotes(dir string, votes raft.StableStore) raft.StableStore {
	return faultyVotes{votes, diskOf(dir)}
}

func (v faultyVotes) Set(key, val []byte) error {
	if err := v.disk.write(); err != nil {
		return err
	}
	return v.StableStore.Set(key, val)
}

func (v faultyVotes) SetUint64(key []byte, val uint64) error {
	if err := v.disk.write(); err != nil {
		return err
	}
	return v.StableStore.SetUint64(key, val)
}
