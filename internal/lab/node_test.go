package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

// startedNode is a lab with one running stand-in.
func startedNode(t *testing.T) (*Lab, *Node) {
	t.Helper()
	roottest.Need(t)
	l := newLab(t, Config{Binary: standin.path(t), Nodes: 1, Clients: 1})
	n := l.Node("lb1")
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitUp(deadline(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	return l, n
}

// starts is how often the stand-in was started on this disk.
func starts(t *testing.T, n *Node) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(n.DataDir(), "starts"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "start")
}

// reach dials the node's cluster address from the client.
func reach(ctx context.Context, l *Lab, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	c, err := l.Clients()[0].Dial(ctx, n.ClusterAddress())
	if err != nil {
		return err
	}
	return c.Close()
}

func TestNodeRunsInItsNamespace(t *testing.T) {
	l, n := startedNode(t)
	if err := reach(t.Context(), l, n); err != nil {
		t.Error(err)
	}
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Master("default") != "lb1" || s.CheckHealthy("lb1") != nil || s.CheckHealthy("lb1", "lb2") == nil {
		t.Errorf("got %+v", s)
	}
	if out, err := n.CLI(t.Context(), "vip", "list"); err != nil || out != "vip list\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := n.CLI(t.Context(), "fail", "--token", "secret"); err == nil ||
		!strings.Contains(err.Error(), "asked to fail") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	if err := n.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
}

func TestPauseStopsAndResumeContinues(t *testing.T) {
	_, n := startedNode(t)
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	// The signal takes a moment to reach every thread.
	if err := WaitFor(deadline(t, 5*time.Second), "a node that does not answer", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if _, err := n.Status(ctx); err == nil {
			return errors.New("it answered")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := WaitFor(deadline(t, 5*time.Second), "an answer", func(ctx context.Context) error {
		_, err := n.Status(ctx)
		return err
	}); err != nil {
		t.Error(err)
	}
	if starts(t, n) != 1 {
		t.Error("it was restarted")
	}
}

func TestKilledAndTerminatedNodeStartsAgain(t *testing.T) {
	_, n := startedNode(t)
	for i, end := range []func(context.Context) error{n.Kill, n.Terminate} {
		if err := end(deadline(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(n.PinDir()); err != nil {
			t.Errorf("the pins went with the process: %v", err)
		}
		if err := n.WaitUp(deadline(t, 5*time.Second)); !errors.Is(err, ErrGiveUp) {
			t.Errorf("waited for a dead one: %v", err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.WaitUp(deadline(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		if got := starts(t, n); got != i+2 {
			t.Errorf("%d starts", got)
		}
	}
}

func TestPowerOffForgetsTheKernelAndKeepsTheDisk(t *testing.T) {
	l, n := startedNode(t)
	mac := macOf(t, n)
	if err := n.Do(func() error { return addAddress(n.Namespace(), "eth1", netip.MustParsePrefix("192.168.80.200/32")) }); err != nil {
		t.Fatal(err)
	}
	proc := n.Process()
	if err := n.PowerOff(deadline(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if proc.Running() {
		t.Error("the daemon outlived its power")
	}
	if _, err := os.Stat(n.PinDir()); err == nil {
		t.Error("the pins outlived the power")
	}
	if err := reach(t.Context(), l, n); err == nil {
		t.Error("reached a node without power")
	}
	if err := n.Start(t.Context()); err == nil {
		t.Error("started without power")
	}
	l.Dump(t.Output()) // must cope with a dark node
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitUp(deadline(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := WaitFor(deadline(t, 5*time.Second), "the node to be reached", func(ctx context.Context) error {
		return reach(ctx, l, n)
	}); err != nil {
		t.Error(err)
	}
	if got := macOf(t, n); got != mac {
		t.Errorf("hardware address %s, had %s", got, mac)
	}
	if err := WaitFor(deadline(t, 300*time.Millisecond), "nothing", func(ctx context.Context) error {
		c, err := l.Clients()[0].Dial(ctx, netip.MustParseAddrPort("192.168.80.200:7400"))
		if err == nil {
			c.Close()
		}
		return err
	}); err == nil {
		t.Error("an address outlived the power")
	}
	if got := starts(t, n); got != 2 {
		t.Errorf("%d starts", got)
	}
}

func macOf(t *testing.T, n *Node) string {
	t.Helper()
	nl, err := nlHandle(n.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	link, err := nl.LinkByName("eth1")
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().HardwareAddr.String()
}

func TestCloseKillsWhatIsStopped(t *testing.T) {
	l, n := startedNode(t)
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("started in a closed lab: %v", err)
	}
}

func TestReleasedLabIsCleanedByPrefix(t *testing.T) {
	roottest.Need(t)
	dir := t.TempDir()
	l, err := New(Config{Binary: standin.path(t), Nodes: 1, Dir: dir, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Clean(dir, l.Prefix()); checkNoTraces(t, l) })
	n := l.Node("lb1")
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitUp(deadline(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if found, err := Leftovers(dir); err != nil || len(found) != 0 {
		t.Errorf("an owned lab is left over: %v, %v", found, err)
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil || !n.Process().Running() {
		t.Errorf("close after release: %v", err)
	}
	if found, err := Leftovers(dir); err != nil || fmt.Sprint(found) != fmt.Sprint([]string{l.Prefix()}) {
		t.Errorf("left over: %v, %v", found, err)
	}
	if err := Clean(dir, l.Prefix()); err != nil {
		t.Fatal(err)
	}
	if err := n.Process().Wait(deadline(t, 5*time.Second)); n.Process().Running() {
		t.Errorf("still runs: %v", err)
	}
	if err := Clean(dir, l.Prefix()); err == nil || !strings.Contains(err.Error(), "no such lab") {
		t.Errorf("second clean: %v", err)
	}
	for _, bad := range []string{"", "pt", "../x", "pt12345", "ptXYZW"} {
		if Clean(dir, bad) == nil {
			t.Errorf("cleaned %q", bad)
		}
	}
}

func TestCleanSparesAReusedProcessID(t *testing.T) {
	self, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !(procRecord{PID: os.Getpid(), Start: self}).alive() {
		t.Error("this process is not alive")
	}
	if (procRecord{PID: os.Getpid(), Start: self + 1}).alive() {
		t.Error("took this process for an older one")
	}
	if (procRecord{}).alive() {
		t.Error("nobody is alive")
	}
}
