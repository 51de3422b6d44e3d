package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// calmVariable says for how long nothing may be taken for a failure; `make soak` sets ten minutes.
const calmVariable = "PONTOON_TEST_CALM"

// hogsVariable says how many processes keep the processors busy in place of one for each.
const hogsVariable = "PONTOON_TEST_HOGS"

// hog keeps every processor busy by processes of its own until the test ends.
func hog(t testing.TB) {
	t.Helper()
	count := runtime.NumCPU()
	if s := os.Getenv(hogsVariable); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", hogsVariable, err)
		}
	}
	for range count {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
}

// decisions are the events that tell of a failure, or of what followed from one.
func decisions(t testing.TB, n *lab.Node) []string {
	t.Helper()
	var out []string
	eventually(t, 20*time.Second, n.Name()+" to tell its events", func(ctx context.Context) error {
		list, err := events(ctx, n)
		if err != nil {
			return err
		}
		out = nil
		for _, e := range list {
			if slices.Contains([]string{"verdict", "failover", "election", "node"}, e.Kind) {
				out = append(out, e.Kind+": "+e.Text)
			}
		}
		return nil
	})
	return out
}

// All processors are kept busy by others, and the daemons collect garbage all the time and are asked for
// their status all the time. None of it is anybody's failure.
func TestABusyMachineFakesNoFailure(t *testing.T) {
	d := 10 * time.Second
	if s := os.Getenv(calmVariable); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			t.Fatalf("%s: %v", calmVariable, err)
		}
	}
	t.Setenv("GOGC", "5") // of the daemons
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 100)
	steady(t, clients)
	pass(t, 8*time.Second) // leadership may still be handed on after the changes
	m, lead := master(t, l, ""), leader(t, l)
	before := map[*lab.Node][]string{}
	for _, n := range l.Nodes() {
		before[n] = decisions(t, n)
	}
	begin, term := epoch(t, m), status(t, lead).Cluster.Term

	hog(t)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	asked := 0
	for ctx.Err() == nil {
		for _, n := range l.Nodes() {
			if _, err := n.Status(ctx); err == nil {
				asked++
			}
		}
	}
	t.Logf("%d answers in %s, %d terms", asked, d, status(t, lead).Cluster.Term-term)

	for _, n := range l.Nodes() {
		after := decisions(t, n)
		if more := after[min(len(before[n]), len(after)):]; len(more) > 0 {
			t.Errorf("%s has seen %q", n.Name(), more)
		}
	}
	if after := epoch(t, m); after != begin {
		t.Errorf("epoch %d became %d", begin, after)
	}
	if now := leader(t, l); now != lead {
		t.Errorf("%s leads in place of %s", now.Name(), lead.Name())
	}
	if asked == 0 {
		t.Error(fmt.Errorf("nobody answered in %s", d))
	}
}
