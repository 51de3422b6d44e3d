package chaostest

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ms = time.Millisecond

// answersOf is a node answering for the address every 5 ms.
func answersOf(node string, from, to time.Duration) (out []Claim) {
	for at := from; at < to; at += 5 * ms {
		out = append(out, Claim{at, "192.0.2.1", node, true})
	}
	return out
}

func viewBy(node string, at time.Duration, master string, epoch uint64) View {
	return View{At: at, Node: node, Life: 1, Quorum: true, Leader: "a", Instances: []InstanceView{{"default", master, epoch}}}
}

// clean is a history without fault: a was master until it was stopped at 1 s, then b.
func clean() *History {
	return &History{
		Seed: 7, Nodes: []string{"a", "b", "c"}, VIPs: map[string]string{"192.0.2.1": "default"},
		Faults: []FaultRecord{{"pause", 1000 * ms, 4000 * ms}},
		Spans:  []Span{{"a", Stopped, 1000 * ms, 4000 * ms}, {"c", Forgot, 500 * ms, 3000 * ms}},
		Claims: append(answersOf("a", 0, 1200*ms), answersOf("b", 1300*ms, 8000*ms)...),
		Views: []View{
			viewBy("a", 50*ms, "a", 5), viewBy("b", 50*ms, "a", 5), viewBy("c", 50*ms, "a", 5),
			viewBy("b", 1300*ms, "b", 9), viewBy("c", 1300*ms, "b", 9), viewBy("a", 4100*ms, "b", 9),
		},
		Writes: []Write{
			{100 * ms, 110 * ms, "b", "k0", "1s", Acknowledged, ""},
			{1000 * ms, 3000 * ms, "a", "k0", "2s", Unknown, "deadline"},
			{3100 * ms, 3110 * ms, "b", "k1", "3s", Acknowledged, ""},
			{3200 * ms, 3210 * ms, "b", "k2", "4s", Refused, "no"},
		},
		Healed: 4000 * ms, Converged: 4500 * ms, Ended: 8000 * ms,
		Final: []Final{
			{"a", map[string]string{"k0": "1s", "k1": "3s"}, []Flow{{"tcp", "c:1", "v:80", "s:1", "e:1", "established", false}, {"tcp", "c:2", "v:80", "s:2", "e:1", "established", true}}},
			{"b", map[string]string{"k0": "1s", "k1": "3s"}, []Flow{{"tcp", "c:1", "v:80", "s:1", "e:1", "established", true}, {"tcp", "c:9", "v:80", "s:2", "e:1", "ended", true}}},
			{"c", map[string]string{"k0": "1s", "k1": "3s"}, nil},
		},
		Traffic: []Traffic{{Name: "fullnat", Connections: 60}},
	}
}

func TestACleanHistoryIsClean(t *testing.T) {
	if bad := Check(clean(), DefaultLimits()); len(bad) > 0 {
		t.Error(bad)
	}
}

// Each invariant is seen broken, by a history that breaks it and no other.
func TestEachInvariantCanBeBroken(t *testing.T) {
	for _, tc := range []struct {
		name      string
		spoil     func(h *History)
		invariant string
	}{
		{"two masters in an epoch", func(h *History) {
			h.Views = append(h.Views, viewBy("c", 1250*ms, "c", 9), viewBy("c", 4200*ms, "b", 9))
		}, "one master per epoch"},
		{"an epoch goes back", func(h *History) { h.Views = append(h.Views, viewBy("b", 4200*ms, "", 8), viewBy("b", 4300*ms, "b", 9)) }, "epochs only grow"},
		{"never whole", func(h *History) { h.Converged, h.Why = 0, "something" }, "whole again in time"},
		{"whole too late", func(h *History) { h.Healed = 0; h.Converged = 25 * time.Second; h.Ended = 25100 * ms }, "whole again in time"},
		{"another answers at the end", func(h *History) { h.Claims = append(h.Claims, Claim{6000 * ms, "192.0.2.1", "a", true}) }, "exactly one answerer"},
		{"a stranger answers at the end", func(h *History) {
			h.Claims = append(h.Claims, Claim{6000 * ms, "192.0.2.1", "02:00:00:00:00:01", true})
		}, "exactly one answerer"},
		{"silence at the end", func(h *History) { h.Ended = 9000 * ms }, "exactly one answerer"},
		{"silence in the middle", func(h *History) {
			h.Claims = append(answersOf("a", 0, 1200*ms), append(answersOf("b", 1300*ms, 5000*ms), answersOf("b", 5600*ms, 8000*ms)...)...)
		}, "exactly one answerer"},
		{"two answer for long", func(h *History) {
			h.Spans = nil
			for i, c := range answersOf("a", 1300*ms, 3000*ms) {
				at := len(answersOf("a", 0, 1200*ms)) + 2*i
				h.Claims = append(h.Claims[:at], append([]Claim{c}, h.Claims[at:]...)...)
			}
		}, "no two answer for long"},
		{"a stopped one goes on", func(h *History) { h.Claims = append(h.Claims, Claim{2600 * ms, "192.0.2.1", "a", true}) }, "silent after the lease"},
		{"what is to be held is not", func(h *History) {
			h.Held = []string{"192.0.2.1"}
			h.Spans[0].What = Unattended
			h.Claims = append(answersOf("a", 0, 1200*ms), answersOf("b", 1800*ms, 8000*ms)...)
		}, "what is held is held"},
		{"not ready and answers", func(h *History) {
			for _, n := range h.Nodes {
				v := viewBy(n, 4000*ms, "b", 9)
				v.NotReady = []string{"b"}
				h.Views = append(h.Views, v)
			}
		}, "ready before it answers"},
		{"a write is lost", func(h *History) {
			for i := range h.Final {
				h.Final[i].Values = map[string]string{"k0": "1s"}
			}
		}, "configuration kept"},
		{"an old value is back", func(h *History) {
			h.Writes = append(h.Writes, Write{3300 * ms, 3310 * ms, "b", "k1", "5s", Acknowledged, ""})
		}, "configuration kept"},
		{"a refused value is there", func(h *History) {
			for i := range h.Final {
				h.Final[i].Values["k1"] = "4s"
			}
		}, "configuration kept"},
		{"nodes differ", func(h *History) { h.Final[1].Values["k0"] = "2s" }, "configuration kept"},
		{"bytes are wrong", func(h *History) { h.Traffic[0].Corrupted = 1 }, "connections keep their bytes"},
		{"a connection is reset", func(h *History) { h.Traffic[0].Reset = 1 }, "connections live on"},
		{"a connection stands still", func(h *History) { h.Traffic[0].Stalled = 1 }, "connections live on"},
		{"one translated address twice", func(h *History) { h.Final[1].Flows[1].State = "established" }, "translated addresses unique"},
		{"two endpoints of one connection", func(h *History) { h.Final[1].Flows[0].Endpoint = "e:2" }, "one endpoint per connection"},
		{"a panic", func(h *History) { h.Logs = []LogFinding{{"a", "panic: oh"}} }, "no daemon falls over"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := clean()
			tc.spoil(h)
			bad := Check(h, DefaultLimits())
			if len(bad) == 0 {
				t.Fatal("nothing was found")
			}
			for _, v := range bad {
				if v.Invariant != tc.invariant {
					t.Errorf("found %v, want only: %s", v, tc.invariant)
				}
			}
		})
	}
}

func TestWhatIsInDoubtOrLostForAllIsAllowed(t *testing.T) {
	h := clean()
	for i := range h.Final { // the write in doubt was done after all, and much later
		h.Final[i].Values["k0"] = "2s"
	}
	h.Traffic[0].Reset = 60 // there was nobody left who knew them
	h.Spans = append(h.Spans, Span{"a", Forgot, 2000 * ms, 4000 * ms}, Span{"b", Forgot, 2500 * ms, 4000 * ms})
	if bad := Check(h, DefaultLimits()); len(bad) > 0 {
		t.Error(bad)
	}
	h.Spans[len(h.Spans)-1].From = 3100 * ms // c knew them again by then
	if bad := Check(h, DefaultLimits()); len(bad) != 1 {
		t.Error(bad)
	}
}

func TestAKernelWithoutProgramsMayReset(t *testing.T) {
	h := clean()
	h.Spans = append(h.Spans, Span{"b", Bare, 2000 * ms, 3000 * ms})
	h.Traffic[0].Reset = 5
	if bad := Check(h, DefaultLimits()); len(bad) > 0 {
		t.Error(bad)
	}
	h.Traffic[0].Stalled = 1
	if bad := Check(h, DefaultLimits()); len(bad) != 1 {
		t.Errorf("one stands still: %v", bad)
	}
	h.Traffic[0].Stalled = 0
	h.Spans[len(h.Spans)-1].Node = "c" // who had no address
	if bad := Check(h, DefaultLimits()); len(bad) != 1 {
		t.Errorf("another one was bare: %v", bad)
	}
}

func TestWithoutALeaseTheFenceIsNotChecked(t *testing.T) {
	h := clean()
	h.Claims = append(h.Claims, Claim{2600 * ms, "192.0.2.1", "a", true})
	l := DefaultLimits()
	l.Lease = 0
	if bad := Check(h, l); len(bad) > 0 {
		t.Error(bad)
	}
}

func TestAHistoryIsReadBackAsItWas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.json")
	if err := clean().Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(clean(), got); diff != "" {
		t.Error(diff)
	}
}

func TestASeedDrawsTheSamePlan(t *testing.T) {
	seen := map[Kind]int{}
	for seed := range uint64(300) {
		p := Draw(seed)
		if diff := cmp.Diff(p, Draw(seed)); diff != "" {
			t.Fatal(diff)
		}
		if len(p.Faults) < 3 || len(p.Faults) > 11 {
			t.Errorf("seed %d: %d faults", seed, len(p.Faults))
		}
		for _, f := range p.Faults {
			seen[f.Kind]++
			if long := f.Kind == KindPause && f.For >= 6*time.Second; f.At < 0 || f.For <= 0 || (f.At+f.For > faultsEnd && !long) {
				t.Errorf("seed %d: %+v", seed, f)
			}
			if !strings.Contains(p.String(), f.String()) {
				t.Errorf("seed %d: %s does not name %s", seed, p, f)
			}
		}
	}
	for _, k := range append(kinds(), KindDetach) {
		if seen[k] == 0 {
			t.Errorf("%s is never drawn", k)
		}
	}
	if cmp.Equal(Draw(1), Draw(2)) {
		t.Error("two seeds, one plan")
	}
}

func TestTheLongestSilenceIsFound(t *testing.T) {
	h := clean()
	if got := longestSilence(h, "192.0.2.1"); got != 105*ms {
		t.Error(got)
	}
	if line := Summary(h, Plan{Faults: []Fault{{Kind: KindLoss, Chance: 0.12, On: Master, At: 500 * ms, For: 2 * time.Second}}}, nil); !strings.Contains(line, "loss 12% master @0.5s+2s") ||
		!strings.Contains(line, "105ms") || !strings.HasSuffix(line, "clean") {
		t.Error(line)
	}
}

func TestAHistoryIsToldInOrder(t *testing.T) {
	var b strings.Builder
	if err := Tell(&b, clean(), []Violation{{"some law", 5000 * ms, "is broken"}}); err != nil {
		t.Fatal(err)
	}
	rest := b.String()
	for _, want := range []string{
		"0.000 answers  a for 192.0.2.1 until 1.195s", "view     a (life 1): leader a, default: a since 5", "fault    pause, undone at 4.000s",
		"write    k0=2s by a unknown", "1.300 answers  b for", "healed", "whole", "5.000 WRONG    some law: is broken",
	} {
		i := strings.Index(rest, want)
		if i < 0 {
			t.Fatalf("%q is missing or out of order in:\n%s", want, b.String())
		}
		rest = rest[i:]
	}
}
