package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"pontoon/internal/lab/chaostest"
	"pontoon/internal/roottest"
)

// The seeds of everyday: a full disk, power losses, a deaf master, links; a killed, a paused and a slow one.
var fixedSeeds = []uint64{103, 107}

// seeds are those to run: CHAOS_SEED is one, CHAOS_SEEDS how many from CHAOS_FIRST
// on, and without either it is the fixed ones. With CHAOS_KEEP set, the story of a
// clean run is kept too.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	number := func(name string, def uint64) uint64 {
		v := os.Getenv(name)
		if v == "" {
			return def
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	if os.Getenv("CHAOS_SEED") != "" {
		return []uint64{number("CHAOS_SEED", 0)}
	}
	count, first := number("CHAOS_SEEDS", 0), number("CHAOS_FIRST", 1)
	if count == 0 {
		return fixedSeeds
	}
	var all []uint64
	for s := range count {
		all = append(all, first+s)
	}
	return all
}

// Whatever happens to a cluster, in whatever order: nothing that was promised is
// broken. make chaos runs many seeds.
func TestChaos(t *testing.T) {
	roottest.Need(t)
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			chaos(t, chaostest.Draw(seed), fmt.Sprintf("CHAOS_SEED=%d make chaos", seed))
		})
	}
}

// Three nodes become two, then one, then three again, while an operator goes on
// configuring and clients go on talking; the last of them was none of the first two
// to leave, so every flow has moved.
func TestAClusterShrinksToOneAndGrowsAgain(t *testing.T) {
	roottest.Need(t)
	chaos(t, chaostest.Plan{Seed: 321, Faults: []chaostest.Fault{
		{Kind: chaostest.KindRejoin, On: chaostest.Master, At: 300 * time.Millisecond, For: 8 * time.Second},
		{Kind: chaostest.KindRejoin, On: chaostest.Master, At: 4 * time.Second, For: 5 * time.Second},
	}}, "go test -run TestAClusterShrinks ./node/e2e")
}

// chaos lets the plan happen and demands that nothing came of it. again is the
// command that does so once more.
func chaos(t *testing.T, plan chaostest.Plan, again string) {
	t.Helper()
	limits := chaostest.DefaultLimits()
	limits.Margin, limits.Converge = roottest.Patient(limits.Margin), roottest.Patient(limits.Converge)
	file := binary
	if faults, _ := plan.Needs(); faults {
		file = faultsBinary(t)
	}
	keep := filepath.Join(os.TempDir(), fmt.Sprintf("pt-chaos-%d", plan.Seed))
	if err := os.MkdirAll(keep, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), roottest.Patient(2*time.Minute))
	defer cancel()
	h, err := chaostest.Run(ctx, chaostest.Config{Binary: file, Plan: plan, Limits: limits, Keep: keep})
	if err != nil {
		t.Errorf("the run itself: %v", err)
	}
	if h == nil {
		return
	}
	bad := chaostest.Check(h, limits)
	t.Log(chaostest.Summary(h, plan, bad))
	for _, v := range bad {
		t.Error(v)
	}
	if !t.Failed() && os.Getenv("CHAOS_KEEP") == "" {
		if err := os.RemoveAll(keep); err != nil {
			t.Error(err)
		}
		return
	}
	if err := errors.Join(h.Save(filepath.Join(keep, "history.json")), tellStory(filepath.Join(keep, "story.txt"), h, bad)); err != nil {
		t.Error(err)
	}
	t.Logf("story, history and logs are in %s; again: %s", keep, again)
}

// faultsBinary is the product built so that faults of the disk can be injected.
func faultsBinary(t *testing.T) string {
	t.Helper()
	if file := os.Getenv("PONTOON_FAULTS_BINARY"); file != "" {
		return file
	}
	file := filepath.Join(t.TempDir(), "pontoon")
	build := exec.Command("go", "build", "-tags", "pontoon_faults", "-ldflags", "-s -w", "-o", file, "pontoon/cmd/pontoon")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build pontoon with faults: %v\n%s", err, out)
	}
	return file
}

// tellStory writes the history down for people.
func tellStory(path string, h *chaostest.History, bad []chaostest.Violation) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(chaostest.Tell(f, h, bad), f.Close())
}
