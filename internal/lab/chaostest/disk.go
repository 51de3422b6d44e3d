package chaostest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

// diskSize is the nodes' disk where one of them is to become full.
const diskSize = 16 << 20

// faultsFile is read by daemons that were built with the tag pontoon_faults.
const faultsFile = "faults.json"

// hurtDisk makes a node's disk slow, broken or full.
func (r *run) hurtDisk(n *lab.Node, f Fault) (done, error) {
	if f.Kind == KindDiskFull {
		path := filepath.Join(n.DataDir(), "fill")
		return done{undo: plain(func() error { return os.Remove(path) })}, fill(path)
	}
	wrong := map[string]any{"error": "input/output error"}
	if f.Kind == KindSlowDisk {
		wrong = map[string]any{"delay_ms": f.Late.Milliseconds()}
	}
	raw, err := json.Marshal(wrong)
	if err != nil {
		return done{}, err
	}
	path := filepath.Join(n.DataDir(), faultsFile)
	undo := func() error {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return done{undo: plain(undo)}, os.WriteFile(path, raw, 0o600)
}

// fill writes a file until there is no room.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("fill disk: %w", err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) > 0; {
		_, err := f.Write(block)
		switch {
		case errors.Is(err, unix.ENOSPC):
			block = block[:len(block)/2]
		case err != nil:
			return fmt.Errorf("fill disk: %w", err)
		}
	}
	return nil
}

// Needs says what a plan asks of the machine: daemons that read faults of their disk
// from a file, and disks of their own.
func (p Plan) Needs() (faults, disks bool) {
	for _, f := range p.Faults {
		faults = faults || f.Kind == KindSlowDisk || f.Kind == KindDiskError
		disks = disks || f.Kind == KindDiskFull
	}
	return faults, disks
}
