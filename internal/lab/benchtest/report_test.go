package benchtest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSpreadIsTheMiddleAndTheEnds(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want spread
	}{
		{[]float64{5}, spread{5, 5, 5}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
	} {
		if got, ok := spreadOf(tc.in); !ok || got != tc.want {
			t.Errorf("%v: %+v, want %+v", tc.in, got, tc.want)
		}
	}
	if _, ok := spreadOf(nil); ok {
		t.Error("nothing has a middle")
	}
}

// twoRounds is a report in which the machine was half as fast in round 2.
func twoRounds() *Report {
	r := newReport(Config{Rounds: 2, Window: time.Second, Workloads: []Workload{UDP, Conns}})
	r.enter(directName, false)
	r.enter(routingName, false)
	r.enter("ours", false)
	for round, speed := range []float64{1, 0.5} {
		r.add(round, UDP, directName, Sample{Rate: 1000 * speed, Cost: 1000 / speed}, nil)
		r.add(round, UDP, routingName, Sample{Rate: 500 * speed, Cost: 2000 / speed}, nil)
		r.add(round, UDP, "ours", Sample{Rate: 750 * speed, Cost: 1500 / speed}, nil)
	}
	return r
}

func TestRatiosAreMadeWithinARound(t *testing.T) {
	r := twoRounds()
	if got, want := r.ratio(UDP, "ours", routingName), "1.50 (1.50–1.50)"; got != want {
		t.Errorf("ratio %s, want %s", got, want)
	}
	if got := r.ratio(UDP, "ours", nftablesName); got != "–" {
		t.Errorf("ratio to what was not measured: %s", got)
	}
	r.samples[UDP][routingName][0] = nil // it failed in the fast round
	if got, want := r.ratio(UDP, "ours", routingName), "1.50 (1.50–1.50)"; got != want {
		t.Errorf("ratio with a round missing %s, want %s", got, want)
	}
}

func TestTheLoadBalancersShareIsWhatACableDoesNotCost(t *testing.T) {
	direct := &Sample{Cost: 1000}
	if got := share(&Sample{Cost: 1500}, direct); got != 500 {
		t.Errorf("share %v, want 500", got)
	}
	// Half of the packets were lost: their sender worked twice for each one that arrived.
	if got := share(&Sample{Cost: 2500, Loss: 0.5}, direct); got != 500 {
		t.Errorf("share with loss %v, want 500", got)
	}
}

func TestReportSaysWhatWasMeasuredAndWhatWasNot(t *testing.T) {
	r := twoRounds()
	r.Unavailable = []Failure{{Contender: "theirs", Err: errors.New("not installed")}}
	r.add(0, Conns, "ours", Sample{}, errors.New("refused"))
	r.add(1, Conns, "ours", Sample{Rate: 8000, P50: time.Millisecond, P99: 4 * time.Millisecond, Cost: 120}, nil)
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"### Small UDP packets\n",
		"| ours | 562 (375–750) | 1.50 (1.50–1.50) | – | 2250 (1500–3000) | 750 (500–1000) | 0 (0–0) % |\n",
		"| direct | 750 (500–1000) | 2.00 (2.00–2.00) | – | 1500 (1000–2000) | – | 0 (0–0) % |\n",
		"| ours | 8000 (8000–8000) | – | – | 120 (120–120) | – | 1.00 (1.00–1.00) | 4.00 (4.00–4.00) |\n",
		"theirs: not available: not installed\n",
		"ours, conns: a measurement failed: refused\n",
		"Medians of 2 interleaved rounds of 1s each",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	// Every row has as many cells as its head.
	for _, table := range strings.Split(b.String(), "### ")[1:] {
		cells := 0
		for line := range strings.Lines(table) {
			if n := strings.Count(line, "|"); strings.HasPrefix(line, "| ") && cells == 0 {
				cells = n
			} else if strings.HasPrefix(line, "|") && n != cells {
				t.Errorf("%d bars instead of %d in %q", n, cells, line)
			}
		}
	}
}

func TestReportWarnsOfABusyMachine(t *testing.T) {
	for idle, want := range map[float64]bool{0.03: false, 0.5: true} {
		r := twoRounds()
		r.idle = idle
		var b strings.Builder
		if err := r.Write(&b); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(b.String(), "not quiet"); got != want {
			t.Errorf("busy %v: warned %v", idle, got)
		}
	}
}

func TestHooksAreComparedPerMode(t *testing.T) {
	r := newReport(Config{Rounds: 1, Workloads: []Workload{UDP}})
	for name, rate := range map[string]float64{"p-tc a": 100, "p-tc b": 200, "p-xdp a": 300, "p-xdp b": 400, "q-xdp": 1} {
		r.enter(name, strings.Contains(name, "xdp"))
		r.add(0, UDP, name, Sample{Rate: rate}, nil)
	}
	slices.Sort(r.names)
	var b strings.Builder
	r.hooks(&b)
	want := "### XDP, as a multiple of TC\n\n| | Small UDP packets |\n|---|---|\n" +
		"| p a | 3.00 (3.00–3.00) |\n| p b | 2.00 (2.00–2.00) |\n\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}

func TestBusyTimeIsAllThatIsNotIdleOrTaken(t *testing.T) {
	got, err := parseCPU("cpu  100 20 300 5000 700 1 2 40 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := (cpuTime{busy: 4230 * time.Millisecond, steal: 400 * time.Millisecond}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8 9", "cpu a b c d e f g h"} {
		if _, err := parseCPU(bad); err == nil {
			t.Errorf("%q was taken for processor time", bad)
		}
	}
}
