package node

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/fsm"
)

// noon is some moment by the clock of a prober.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// known is a finding about endpoint 7, of which the cluster knows was.
func known(was fsm.Verdict, up bool) finding {
	was.Endpoint = 7
	return finding{service: "web", instance: "default", committed: was, known: true, up: up, failing: !up, since: noon, why: "connection refused"}
}

func TestVerdictFollowsTheProbes(t *testing.T) {
	up, down := fsm.Verdict{Health: fsm.HealthUp, Since: noon.Add(-time.Hour)}, fsm.Verdict{Health: fsm.HealthDown, Since: noon.Add(-time.Hour), Why: "no answer in 1s"}
	unknown := fsm.Verdict{Health: fsm.HealthUnknown}
	flapping := func(f finding) finding { f.flapping = true; return f }
	silent := func(f finding) finding { f.known = false; return f }
	for name, tc := range map[string]struct {
		f    finding
		want fsm.Verdict
		news bool
	}{
		"up for the first time":        {known(unknown, true), fsm.Verdict{Health: fsm.HealthUp, Since: noon}, true},
		"down for the first time":      {known(unknown, false), fsm.Verdict{Health: fsm.HealthDown, Since: noon, Why: "connection refused"}, true},
		"dies":                         {known(up, false), fsm.Verdict{Health: fsm.HealthDown, Since: noon, Why: "connection refused"}, true},
		"comes back":                   {known(down, true), fsm.Verdict{Health: fsm.HealthUp, Since: noon}, true},
		"stays up":                     {known(up, true), up, false},
		"stays down, other words":      {known(down, false), down, false},
		"begins to flap":               {flapping(known(down, false)), fsm.Verdict{Health: fsm.HealthDown, Since: down.Since, Why: down.Why, Flapping: true}, true},
		"up for nobody knows how long": {func() finding { f := known(unknown, true); f.since = time.Time{}; return f }(), fsm.Verdict{Health: fsm.HealthUp, Since: noon}, true},
		"nothing is said":              {silent(known(down, true)), down, false},
	} {
		tc.want.Endpoint = 7
		got, later := tc.f.verdict(noon)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if news(got, tc.f.committed) != tc.news || !later.IsZero() {
			t.Errorf("%s: news %t, later %s", name, !tc.news, later)
		}
	}
}

func TestSlowStartGoesOnInTenSteps(t *testing.T) {
	f := known(fsm.Verdict{Health: fsm.HealthDown, Since: noon.Add(-time.Hour)}, true)
	f.slowStart = 100 * time.Second
	var shares []int
	now := noon.Add(30 * time.Second) // it was down for longer by what is committed
	for range 20 {
		v, later := f.verdict(now)
		if !news(v, f.committed) {
			t.Fatalf("no news at %s: %+v", now, v)
		}
		shares = append(shares, v.Percent())
		f.committed = v
		if later.IsZero() {
			break
		}
		if step := later.Sub(now); step != 10*time.Second {
			t.Errorf("the step after %d %% comes after %s", v.Percent(), step)
		}
		if early, _ := f.verdict(later.Add(-time.Millisecond)); news(early, v) {
			t.Errorf("%d %% ends early: %+v", v.Percent(), early)
		}
		now = later
	}
	if want := []int{10, 20, 30, 40, 50, 60, 70, 80, 90, 100}; !slices.Equal(shares, want) {
		t.Errorf("shares %v, want %v", shares, want)
	}
}

func TestSlowStartOfAnotherNodesClock(t *testing.T) {
	ramp := fsm.Verdict{Endpoint: 7, Health: fsm.HealthUp, Since: noon.Add(time.Hour), Share: 40}
	f := known(ramp, true)
	f.slowStart = 10 * time.Second
	v, later := f.verdict(noon)
	if !v.Since.Equal(noon) || v.Percent() != 10 || !news(v, ramp) || !later.Equal(noon.Add(time.Second)) {
		t.Errorf("%+v, again at %s", v, later)
	}
	f.slowStart = 0 // taken out of the configuration meanwhile
	if v, later = f.verdict(noon); v.Percent() != 100 || !news(v, ramp) || !later.IsZero() {
		t.Errorf("%+v, again at %s", v, later)
	}
}

func TestRecoveryWithoutADeathHasNoSlowStart(t *testing.T) {
	f := known(fsm.Verdict{Health: fsm.HealthUnknown}, true)
	f.slowStart = time.Minute
	if v, later := f.verdict(noon); v.Percent() != 100 || !later.IsZero() {
		t.Errorf("%+v, again at %s", v, later)
	}
}

func TestWhatIsHeldBackIsNotDue(t *testing.T) {
	f := known(fsm.Verdict{Health: fsm.HealthUp}, false)
	if due, _ := dueVerdicts([]finding{f}, nil, noon); len(due["default"]) != 1 {
		t.Errorf("due: %v", due)
	}
	if due, _ := dueVerdicts([]finding{f}, map[uint32]bool{7: true}, noon); len(due) != 0 {
		t.Errorf("due although held back: %v", due)
	}
}

func TestVerdictsGoIntoEntriesOfBoundedSize(t *testing.T) {
	due := map[string][]fsm.Verdict{"a": make([]fsm.Verdict, 10), "b": make([]fsm.Verdict, verdictBatch), "c": make([]fsm.Verdict, 5), "d": make([]fsm.Verdict, 3)}
	prober := func(instance string) (fsm.NodeID, uint64) {
		if instance == "d" {
			return "lb2", 9
		}
		return "lb1", uint64(instance[0])
	}
	entries := healthCommands("lb1", []string{"a", "b", "c", "d"}, due, prober)
	told := map[string]int{}
	for _, e := range entries {
		if n := verdictsIn(e); n == 0 || n > verdictBatch {
			t.Errorf("an entry of %d", n)
		}
		list := []fsm.Command{e}
		if b, ok := e.(fsm.Batch); ok {
			list = b.Commands
		}
		for _, c := range list {
			h := c.(fsm.SetHealth)
			told[h.Instance] += len(h.Verdicts)
			if h.Node != "lb1" || h.Epoch != uint64(h.Instance[0]) {
				t.Errorf("%s: node %s, epoch %d", h.Instance, h.Node, h.Epoch)
			}
		}
	}
	if d := cmp.Diff(map[string]int{"a": 10, "b": verdictBatch, "c": 5}, told); d != "" || len(entries) != 2 {
		t.Errorf("%d entries: %s", len(entries), d)
	}
	if all := healthCommands("lb1", nil, nil, prober); all != nil {
		t.Errorf("entries of nothing: %v", all)
	}
}
