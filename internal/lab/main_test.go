package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		// Mounted here and left: other packages' tests may rely on it, and so
		// no lab of ours unmounts it under them.
		if _, err := EnsureBPFFS(defaultBPFFS); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	standin.remove()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// standinBinary builds testdata/standin once.
type standinBinary struct {
	once sync.Once
	dir  string
	err  error
}

var standin standinBinary

func (s *standinBinary) path(t *testing.T) string {
	t.Helper()
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "ptstandin"); s.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", filepath.Join(s.dir, "standin"), "./testdata/standin")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			s.err = fmt.Errorf("build stand-in: %w\n%s", err, out)
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return filepath.Join(s.dir, "standin")
}

func (s *standinBinary) remove() {
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// deadline is a context for one step of a test.
func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// newLab builds a lab that is closed at the end of the test, which fails if
// anything of it is left.
func newLab(t *testing.T, cfg Config) *Lab {
	t.Helper()
	roottest.Need(t)
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.Dump(t.Output())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if l.rec.MountedBPFFS { // a failed test must not leave its mount
			_ = unix.Unmount(l.cfg.BPFFS, unix.MNT_DETACH)
		}
		checkNoTraces(t, l)
	})
	return l
}

// checkNoTraces fails the test if anything named after the lab exists.
func checkNoTraces(t *testing.T, l *Lab) {
	t.Helper()
	for _, pattern := range []string{nsPath(l.prefix) + "*", l.dir, filepath.Join(l.cfg.BPFFS, l.prefix+"*")} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	for _, r := range l.rec.Processes {
		if r.alive() {
			t.Errorf("left behind: process %d", r.PID)
		}
	}
}
