package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// exchange sends one line from a host to a listener on another and back.
func exchange(t *testing.T, from, to *Host, at netip.Addr) error {
	t.Helper()
	ln, err := to.Listen(netip.AddrPortFrom(at, 0))
	if err != nil {
		return err
	}
	defer ln.Close()
	var g errgroup.Group
	g.Go(func() error {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.Copy(c, c)
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		ln.Close()
		return errors.Join(err, g.Wait())
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	const line = "over the pontoon\n"
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	buf := make([]byte, len(line))
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if string(buf) != line {
		t.Errorf("got %q back", buf)
	}
	c.Close()
	return g.Wait()
}

func TestTwoLegConnectsNodesWithBothSides(t *testing.T) {
	l := newLab(t, Config{Nodes: 3, Clients: 2, Endpoints: 2})
	lb2 := l.Node("lb2")
	if got := lb2.Addrs(); got[0].String() != "192.168.80.12/24" || got[1].String() != "10.2.0.12/24" {
		t.Fatalf("lb2 has %v", got)
	}
	for _, c := range l.Clients() {
		if err := exchange(t, c, lb2.Host, lb2.Addr()); err != nil {
			t.Error(err)
		}
	}
	for _, e := range l.Endpoints() {
		if err := exchange(t, lb2.Host, e, e.Addr()); err != nil {
			t.Error(err)
		}
	}
	ctx := deadline(t, time.Second)
	if c, err := l.Clients()[0].Dial(ctx, netip.AddrPortFrom(l.Endpoints()[0].Addr(), 8080)); err == nil {
		c.Close()
		t.Error("a client reached an endpoint past the load balancers")
	}
}

func TestOneLegConnectsEverybody(t *testing.T) {
	l := newLab(t, Config{Topology: OneLeg, Nodes: 1, Clients: 1, Endpoints: 1})
	if err := exchange(t, l.Clients()[0], l.Endpoints()[0], netip.MustParseAddr("192.168.80.21")); err != nil {
		t.Error(err)
	}
	if err := exchange(t, l.Clients()[0], l.Host("lb1"), netip.MustParseAddr("192.168.80.11")); err != nil {
		t.Error(err)
	}
}

func TestUDPCrossesASegment(t *testing.T) {
	l := newLab(t, Config{Topology: OneLeg, Clients: 2})
	a, b := l.Clients()[0], l.Clients()[1]
	ca, err := a.ListenUDP(netip.AddrPortFrom(a.Addr(), 5000))
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	cb, err := b.ListenUDP(netip.AddrPortFrom(b.Addr(), 5000))
	if err != nil {
		t.Fatal(err)
	}
	defer cb.Close()
	if _, err := ca.WriteToUDPAddrPort([]byte("ping"), netip.AddrPortFrom(b.Addr(), 5000)); err != nil {
		t.Fatal(err)
	}
	if err := cb.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := cb.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "ping" || from.Addr() != a.Addr() {
		t.Errorf("got %q from %s: %v", buf[:n], from, err)
	}
}

func TestLinksDownTakesTheCarrier(t *testing.T) {
	l := newLab(t, Config{Nodes: 1, Clients: 1})
	n := l.Node("lb1")
	carrier := func(want bool) func(context.Context) error {
		return func(context.Context) error {
			var raw []byte
			err := n.Do(func() (err error) {
				nl, err := nlHandle(n.Namespace())
				if err != nil {
					return err
				}
				defer nl.Close()
				link, err := nl.LinkByName("eth2")
				if err != nil {
					return err
				}
				raw = []byte(link.Attrs().OperState.String())
				return nil
			})
			if err == nil && (string(raw) == "up") != want {
				err = errors.New("eth2 is " + string(raw))
			}
			return err
		}
	}
	if err := WaitFor(deadline(t, 3*time.Second), "carrier", carrier(true)); err != nil {
		t.Fatal(err)
	}
	if err := n.LinksDown(); err != nil {
		t.Fatal(err)
	}
	if err := WaitFor(deadline(t, 3*time.Second), "no carrier", carrier(false)); err != nil {
		t.Error(err)
	}
	if c, err := l.Clients()[0].Dial(deadline(t, 300*time.Millisecond), netip.AddrPortFrom(n.Addr(), 1)); err == nil {
		c.Close()
		t.Error("reached a node whose links are down")
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial over a dead link: %v", err)
	}
	if err := n.LinksUp(); err != nil {
		t.Fatal(err)
	}
	if err := WaitFor(deadline(t, 3*time.Second), "carrier", carrier(true)); err != nil {
		t.Error(err)
	}
	if err := exchange(t, l.Clients()[0], n.Host, n.Addr()); err != nil {
		t.Error(err)
	}
}

func TestFailedNewLeavesNothing(t *testing.T) {
	roottest.Need(t)
	dir := t.TempDir()
	// A BPF file system that cannot be mounted fails after the directory and
	// the state file were made; a host name that is taken, after the bridges.
	_, err := New(Config{Nodes: 1, Dir: dir, BPFFS: filepath.Join(dir, "none")})
	if err == nil {
		t.Fatal("New succeeded without a place for bpffs")
	}
	l := &Lab{cfg: Config{Dir: dir, BPFFS: defaultBPFFS}.withDefaults(), segments: map[string]*segment{}, hosts: map[string]*Host{}}
	id, err := l.claimPrefix()
	if err != nil {
		t.Fatal(err)
	}
	l.ctx, l.cancel = context.WithCancel(t.Context())
	lay := planLayout(Config{Topology: TwoLeg, Clients: 2}, id)
	lay.hosts[1].name = lay.hosts[0].name
	if err := l.build(lay); err == nil {
		t.Fatal("built two hosts of one name")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	checkNoTraces(t, l)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left in the directory: %v", left)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	}
}

func TestBPFFSIsUnmountedOnlyWhenEmpty(t *testing.T) {
	roottest.Need(t)
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	mounted, err := EnsureBPFFS(dir)
	if err != nil || !mounted {
		t.Fatalf("mounted %v: %v", mounted, err)
	}
	if again, err := EnsureBPFFS(dir); err != nil || again {
		t.Errorf("mounted a second time %v: %v", again, err)
	}
	foreign := filepath.Join(dir, "somebody")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := releaseBPFFS(dir); err != nil {
		t.Error(err)
	}
	if again, err := EnsureBPFFS(dir); err != nil || again {
		t.Errorf("unmounted below a foreign pin: %v", err)
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	if err := releaseBPFFS(dir); err != nil {
		t.Error(err)
	}
	if again, err := EnsureBPFFS(dir); err != nil || !again {
		t.Errorf("still mounted after release: %v", err)
	}
	if err := releaseBPFFS(dir); err != nil {
		t.Error(err)
	}
}

func TestLabMountsAndUnmountsItsBPFFS(t *testing.T) {
	dir := t.TempDir()
	l := newLab(t, Config{Nodes: 1, BPFFS: dir})
	if !l.rec.MountedBPFFS {
		t.Fatal("not mounted")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if mounted, err := EnsureBPFFS(dir); err != nil || !mounted {
		t.Errorf("still mounted after Close: %v", err)
	}
	if err := releaseBPFFS(dir); err != nil {
		t.Error(err)
	}
}

func TestRunReportsTheCommandsError(t *testing.T) {
	l := newLab(t, Config{Topology: OneLeg, Clients: 1})
	c := l.Clients()[0]
	if err := c.Run(deadline(t, 5*time.Second), exec.Command("true")); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := c.Run(deadline(t, 5*time.Second), exec.Command("false")); !errors.As(err, &exit) {
		t.Errorf("got %v", err)
	}
	ctx := deadline(t, 100*time.Millisecond)
	if err := c.Run(ctx, exec.Command("sleep", "60")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestConfigErrorsAreReportedTogether(t *testing.T) {
	err := Config{Topology: "ring", Nodes: 9, Clients: -1, Dir: strings.Repeat("/long", 30), Binary: "/nowhere"}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"topology", "9 nodes", "-1 clients", "too long", "binary"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in: %v", want, err)
		}
	}
}

func TestWaitForNamesWhatWasAwaited(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	calls := 0
	err := WaitFor(ctx, "spring", func(context.Context) error { calls++; return errors.New("still winter") })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "spring") ||
		!strings.Contains(err.Error(), "still winter") || calls < 2 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	err = WaitFor(t.Context(), "a dead thing", func(context.Context) error { return ErrGiveUp })
	if !errors.Is(err, ErrGiveUp) {
		t.Errorf("got %v", err)
	}
}

func TestStartTimeSurvivesStrangeNames(t *testing.T) {
	stat := "77 (a) b (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1000 1"
	if got, err := parseStartTime(stat); err != nil || got != 4242 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, bad := range []string{"", "77 (a) S 1", "no parentheses at all"} {
		if _, err := parseStartTime(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}
