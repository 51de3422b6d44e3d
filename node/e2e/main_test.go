package e2e

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// binary is the product under test, set by TestMain.
var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() == 0 {
		// Mounted here and left, so that no lab takes it away under another beside it.
		if _, err := lab.EnsureBPFFS("/sys/fs/bpf"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	binary = os.Getenv("PONTOON_BINARY")
	if binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "pt-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "pontoon")
	build := exec.Command("go", "build", "-o", binary, "pontoon/cmd/pontoon")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build pontoon:", err)
		return 1
	}
	return m.Run()
}

// within returns a context that ends the test's patience.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), roottest.Patient(d))
	t.Cleanup(cancel)
	return ctx
}

// newLab makes the hosts and starts the daemons; nothing is in a cluster yet.
func newLab(t testing.TB, cfg lab.Config) *lab.Lab {
	t.Helper()
	roottest.Need(t)
	cfg.Binary = cmp.Or(cfg.Binary, binary)
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	l, err := lab.New(cfg)
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
	})
	ctx := within(t, 20*time.Second)
	for _, n := range l.Nodes() {
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range l.Nodes() {
		if err := n.WaitUp(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// cli runs the command line on a node and fails the test on an error. A
// starved machine may change leaders in the middle of a write, whose outcome
// is then unknown; such a write is repeated, as the message asks for.
func cli(t testing.TB, n *lab.Node, args ...string) string {
	t.Helper()
	ctx := within(t, 30*time.Second)
	out, err := n.CLI(ctx, args...)
	for err != nil && strings.Contains(err.Error(), "may or may not have happened") {
		t.Log("repeated:", err)
		if out, err = n.CLI(ctx, args...); err != nil && strings.Contains(err.Error(), "exists already") {
			return out
		}
	}
	if err != nil {
		t.Fatalf("%s: pontoon %v: %v", n.Name(), args, err)
	}
	return out
}
