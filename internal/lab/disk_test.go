package lab

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Its own disk can be filled without anybody else noticing, and goes with the lab
// (see newLab), also while something on it is open.
func TestANodeHasADiskOfItsOwn(t *testing.T) {
	l := newLab(t, Config{Topology: OneLeg, Nodes: 2, DiskSize: 1 << 20})
	full, other := l.Nodes()[0], l.Nodes()[1]
	f, err := os.Create(filepath.Join(full.DataDir(), "fill"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(make([]byte, 2<<20)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("two MiB on a disk of one: %v", err)
	}
	if err := os.WriteFile(filepath.Join(other.DataDir(), "file"), make([]byte, 1<<19), 0o600); err != nil {
		t.Errorf("the other node's disk: %v", err)
	}
}
