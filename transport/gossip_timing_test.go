package transport

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The tests below need a member that can be frozen as a whole, so one runs in a
// process of its own: the test binary again, with this variable set to the
// address it is to join.
const gossipChildEnv = "PONTOON_TEST_GOSSIP_CHILD"

// TestGossipChild is that member. It is no test when the variable is not set.
func TestGossipChild(t *testing.T) {
	join := os.Getenv(gossipChildEnv)
	if join == "" {
		t.Skip("runs only as a child of other tests")
	}
	g := startGossip(t, "victim")
	if err := g.Join([]netip.AddrPort{netip.MustParseAddrPort(join)}); err != nil {
		t.Fatal(err)
	}
	g.SetSeeds(map[string]netip.AddrPort{"lb1": netip.MustParseAddrPort(join)})
	fmt.Println("address " + g.Address().String())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent goes
}

// freezable is the child process.
type freezable struct {
	cmd  *exec.Cmd
	addr netip.AddrPort
}

func startChild(t *testing.T, join netip.AddrPort) *freezable {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestGossipChild$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), gossipChildEnv+"="+join.String())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	f := &freezable{cmd: cmd}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var addr string
		if n, _ := fmt.Sscanf(lines.Text(), "address %s", &addr); n == 1 {
			f.addr = netip.MustParseAddrPort(addr)
			return f
		}
	}
	t.Fatal("the child gave no address")
	return nil
}

func (f *freezable) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := f.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// startWithVictim starts n-1 members here and the victim in a process of its own.
func startWithVictim(t *testing.T, n int) ([]*testGossip, *freezable) {
	t.Helper()
	var all []*testGossip
	for i := range n - 1 {
		g := startGossip(t, fmt.Sprintf("lb%d", i+1))
		if i > 0 {
			if err := g.Join([]netip.AddrPort{all[0].Address()}); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, g)
	}
	victim := startChild(t, all[0].Address())
	for _, g := range all {
		g.SetSeeds(map[string]netip.AddrPort{"victim": victim.addr})
	}
	waitAllSee(t, all, GossipAlive)
	return all, victim
}

func waitAllSee(t *testing.T, all []*testGossip, state GossipState) {
	t.Helper()
	for _, g := range all {
		eventually(t, 15*time.Second, g.cfg.Node+" shows the victim as "+string(state), func() bool { return g.state("victim") == state })
	}
}

// rounds is how often the timing tests repeat: a few, or what the variable says.
func rounds(t *testing.T, few int) int {
	t.Helper()
	if s := os.Getenv("PONTOON_TEST_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return few
}

func TestSilentMachineIsDeclaredDeadWithinAboutASecond(t *testing.T) {
	for _, n := range []int{3, 5, 7} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			checkLeaks(t)
			all, victim := startWithVictim(t, n)
			var suspect, dead []time.Duration
			for range rounds(t, 2) {
				start := time.Now()
				victim.signal(t, syscall.SIGSTOP)
				eventually(t, 15*time.Second, "suspicion", func() bool { return all[0].state("victim") != GossipAlive })
				suspect = append(suspect, time.Since(start))
				waitAllSee(t, all, GossipDead)
				dead = append(dead, time.Since(start))
				victim.signal(t, syscall.SIGCONT)
				waitAllSee(t, all, GossipAlive)
			}
			t.Logf("%d nodes: suspect on one %s; dead on all %s", n, spread(suspect), spread(dead))
			// Generous: the machine may be busy. DESIGN.md has what is usual.
			if slices.Min(dead) > 2*time.Second {
				t.Errorf("declaring death took %s at the least", slices.Min(dead))
			}
		})
	}
}

func TestStalledDaemonIsNotDeclaredDead(t *testing.T) {
	checkLeaks(t)
	all, victim := startWithVictim(t, 3)
	var suspected, died int
	n := rounds(t, 3)
	for range n {
		victim.signal(t, syscall.SIGSTOP)
		died += watchFor(t, all, 300*time.Millisecond, &suspected)
		victim.signal(t, syscall.SIGCONT)
		died += watchFor(t, all, 700*time.Millisecond, nil)
		waitAllSee(t, all, GossipAlive)
	}
	t.Logf("%d stalls of 300 ms: suspected in %d, declared dead in %d", n, suspected, died)
	if died == n {
		t.Error("a stall of 300 ms was taken for death every time")
	}
}

// watchFor polls the members for d and returns 1 if any showed the victim as
// dead; it counts in suspected if any showed it as suspect.
func watchFor(t *testing.T, all []*testGossip, d time.Duration, suspected *int) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	seen := map[GossipState]bool{}
	for pause(ctx, 5*time.Millisecond) {
		for _, g := range all {
			seen[g.state("victim")] = true
		}
	}
	if suspected != nil && seen[GossipSuspect] {
		*suspected++
	}
	if seen[GossipDead] {
		return 1
	}
	return 0
}

func spread(ds []time.Duration) string {
	s := slices.Sorted(slices.Values(ds))
	ms := time.Millisecond
	return fmt.Sprintf("min %s, median %s, max %s (%d rounds)",
		s[0].Round(ms), s[len(s)/2].Round(ms), s[len(s)-1].Round(ms), len(s))
}
