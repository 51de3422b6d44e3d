package fsm

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// probed is threeNodes with a probe, and the service as it is then.
func probed(t testing.TB) (*State, Service) {
	t.Helper()
	s := do(t, threeNodes(t), withProbe(Probe{Type: ProbeTCP}))
	svc, _ := s.Service("web")
	return s, svc
}

// found is what the prober of the default instance says at s.
func found(s *State, verdicts ...Verdict) SetHealth {
	node, epoch := s.Prober(DefaultInstance)
	return SetHealth{Instance: DefaultInstance, Node: node, Epoch: epoch, Verdicts: verdicts}
}

func down(e Endpoint) Verdict {
	return Verdict{Endpoint: e.ID, Health: HealthDown, Since: epoch0, Why: "connection refused"}
}

func up(e Endpoint) Verdict { return Verdict{Endpoint: e.ID, Health: HealthUp, Since: epoch0} }

func TestVerdictIsKeptAsItWasGiven(t *testing.T) {
	s, svc := probed(t)
	one, two := svc.Endpoints[0], svc.Endpoints[1]
	if v := s.Health(one.ID); v.Health != HealthUnknown || v.Percent() != 100 {
		t.Errorf("before: %+v", v)
	}
	s = do(t, s, found(s, down(one), Verdict{Endpoint: two.ID, Health: HealthUp, Since: epoch0, Why: "no", Share: 30}))
	if diff := cmp.Diff(down(one), s.Health(one.ID), sameValues()); diff != "" {
		t.Error(diff)
	}
	if v := s.Health(two.ID); v.Why != "" || v.Share != 30 || v.Percent() != 30 {
		t.Errorf("up: %+v", v)
	}
	s = do(t, s, found(s, Verdict{Endpoint: one.ID, Health: HealthUnknown}, Verdict{Endpoint: two.ID, Health: HealthUp, Since: epoch0, Share: 100}))
	if v := s.Health(one.ID); v.Health != HealthUnknown || len(s.Verdicts()) != 1 {
		t.Errorf("forgotten: %+v of %+v", v, s.Verdicts())
	}
	if v := s.Health(two.ID); v.Share != 0 || v.Percent() != 100 {
		t.Errorf("all of the weight: %+v", v)
	}
}

func TestWordsOfAServerBecomeOneLine(t *testing.T) {
	s, svc := probed(t)
	v := down(svc.Endpoints[0])
	v.Why = " bad\r\nnews\x1b[31m\u2028 " + strings.Repeat("ä", MaxWhy)
	s = do(t, s, found(s, v))
	why := s.Health(v.Endpoint).Why
	if !strings.HasPrefix(why, "bad  news [31m  ä") || len(why) > MaxWhy || len(why) < MaxWhy-1 || !utf8.ValidString(why) {
		t.Errorf("%d bytes %q", len(why), why)
	}
}

func TestOnlyTheProberOfTheEpochIsHeard(t *testing.T) {
	s, svc := probed(t)
	good := found(s, down(svc.Endpoints[0]))
	for name, change := range map[string]func(*SetHealth){
		"another node": func(c *SetHealth) { c.Node = "lb2" },
		"no node":      func(c *SetHealth) { c.Node = "" },
		"before":       func(c *SetHealth) { c.Epoch-- },
		"after":        func(c *SetHealth) { c.Epoch++ },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			change(&c)
			refused(t, s, c, ErrStale, "does not probe instance default")
		})
	}
	unknown := good
	unknown.Instance = "blue"
	refused(t, s, unknown, ErrNotFound, "instance blue does not exist")
	moved := do(t, s, MoveInstance{Name: DefaultInstance, To: "lb2"})
	refused(t, moved, good, ErrStale, "node lb2 does, in epoch")
	do(t, moved, found(moved, down(svc.Endpoints[0])))
}

func TestFirstOfAnInstanceWithoutMasterProbesIt(t *testing.T) {
	s := do(t, threeNodes(t), PutInstance{Name: "wide", Kind: InstanceECMP})
	inst, _ := s.Instance("wide")
	if node, epoch := s.Prober("wide"); node != inst.Succession[0] || epoch != inst.Epoch {
		t.Errorf("%s in %d, of %+v", node, epoch, inst)
	}
	if node, epoch := s.Prober("none"); node != "" || epoch != 0 {
		t.Errorf("%s in %d probes what does not exist", node, epoch)
	}
	s = do(t, s, NodeVerdict{Node: "lb1"}, NodeVerdict{Node: "lb2"}, NodeVerdict{Node: "lb3"})
	if node, _ := s.Prober("wide"); node != "" {
		t.Errorf("%s probes, and all are dead", node)
	}
}

func TestVerdictsThatCannotBe(t *testing.T) {
	s, svc := probed(t)
	v := down(svc.Endpoints[0])
	for name, c := range map[string]struct {
		change func(*Verdict)
		word   string
	}{
		"health": {func(v *Verdict) { v.Health = "ill" }, "health ill must be up or down"},
		"share":  {func(v *Verdict) { v.Share = 101 }, "share 101 must be 0 to 100"},
		"time":   {func(v *Verdict) { v.Since = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC) }, "since is in the year 1900"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := v
			c.change(&bad)
			refused(t, s, found(s, up(svc.Endpoints[1]), bad), ErrInvalid, c.word)
		})
	}
	refused(t, s, found(s, make([]Verdict, MaxID+1)...), ErrInvalid, "are too many")
}

func TestVerdictsAboutOthersArePassedOver(t *testing.T) {
	s, svc := probed(t)
	quiet := webService()
	quiet.Name, quiet.Port = "quiet", 81
	s = do(t, s, PutService{Service: quiet}, PutInstance{Name: "blue"}, PutVIP{VIP: VIP{Address: addr("10.0.0.101"), Instance: "blue"}})
	other := webService()
	other.Name, other.VIP, other.Probe = "other", addr("10.0.0.101"), Probe{Type: ProbeTCP}
	s = do(t, s, PutService{Service: other})
	quiet, _ = s.Service("quiet")
	other, _ = s.Service("other")
	before := snap(t, s)
	next := do(t, s, found(s, down(quiet.Endpoints[0]), down(other.Endpoints[0]), down(Endpoint{ID: 0}), down(Endpoint{ID: 999}), down(Endpoint{ID: 1 << 30})))
	same := *next
	same.index = s.index
	if got := snap(t, &same); !bytes.Equal(got, before) || !SharesConfig(s, next) {
		t.Errorf("the state changed: %s", got)
	}
	if next = do(t, next, found(next, down(svc.Endpoints[0]))); len(next.Verdicts()) != 1 {
		t.Errorf("%+v", next.Verdicts())
	}
}

func TestVerdictThatIsKnownChangesNothing(t *testing.T) {
	s, svc := probed(t)
	s = do(t, s, found(s, down(svc.Endpoints[0]), up(svc.Endpoints[1])))
	next := do(t, s, found(s, up(svc.Endpoints[1]), down(svc.Endpoints[0])))
	if !sameRows(&s.health, &next.health) {
		t.Error("the table was copied")
	}
}

// A verdict belongs to an endpoint and to what it was asked.
func TestVerdictGoesWithWhatItWasAbout(t *testing.T) {
	start, svc := probed(t)
	start = do(t, start, found(start, down(svc.Endpoints[0]), down(svc.Endpoints[1])))
	one, two := svc.Endpoints[0], svc.Endpoints[1]
	put := func(change func(*Service)) []Command {
		next := svc
		next.Endpoints = slices.Clone(svc.Endpoints)
		change(&next)
		return []Command{PutService{Service: next}}
	}
	for name, c := range map[string]struct {
		cmds []Command
		left []uint32
	}{
		"nothing changed":   {put(func(*Service) {}), []uint32{one.ID, two.ID}},
		"another algorithm": {put(func(s *Service) { s.Algorithm = RoundRobin }), []uint32{one.ID, two.ID}},
		"other times": {put(func(s *Service) {
			s.Probe.Interval, s.Probe.Timeout, s.Probe.Rise, s.Probe.Fall = MaxProbeInterval, MinProbeTimeout, 7, 8
		}), []uint32{one.ID, two.ID}},
		"another weight":        {put(func(s *Service) { s.Endpoints[0].Weight = 9 }), []uint32{one.ID, two.ID}},
		"drained":               {[]Command{SetEndpointAdmin{Service: "web", Endpoint: one.Address, Admin: AdminDrain}}, []uint32{one.ID, two.ID}},
		"an endpoint gone":      {put(func(s *Service) { s.Endpoints = s.Endpoints[1:] }), []uint32{two.ID}},
		"an endpoint elsewhere": {put(func(s *Service) { s.Endpoints[0].Address = addrPort("10.1.0.9:1") }), []uint32{two.ID}},
		"another type":          {put(func(s *Service) { s.Probe = Probe{Type: ProbeICMP} }), nil},
		"another port":          {put(func(s *Service) { s.Probe.Port = 1 }), nil},
		"not probed any more":   {put(func(s *Service) { s.Probe = Probe{Type: ProbeNone} }), nil},
		"said nothing":          {put(func(s *Service) { s.Probe = Probe{} }), nil},
		"deleted":               {[]Command{DeleteService{Name: "web"}}, nil},
		"made anew in one step": {[]Command{Batch{Commands: append([]Command{DeleteService{Name: "web"}}, put(func(*Service) {})...)}}, nil},
		"another master":        {[]Command{MoveInstance{Name: DefaultInstance, To: "lb2"}}, []uint32{one.ID, two.ID}},
	} {
		t.Run(name, func(t *testing.T) {
			s := do(t, start, c.cmds...)
			var left []uint32
			for _, v := range s.Verdicts() {
				left = append(left, v.Endpoint)
			}
			if !slices.Equal(left, c.left) {
				t.Errorf("left are %v, want %v", left, c.left)
			}
			if len(start.Verdicts()) != 2 {
				t.Error("the old state was written to")
			}
		})
	}
}

func TestUsable(t *testing.T) {
	s, svc := probed(t)
	one, two := svc.Endpoints[0], svc.Endpoints[1]
	check := func(what string, s *State, e Endpoint, want bool, words string) {
		t.Helper()
		svc, _ := s.Service("web")
		i, _ := svc.endpointAt(e.Address)
		if uses, why := s.Usable(svc, svc.Endpoints[i]); uses != want || why != words {
			t.Errorf("%s: %v %q, want %v %q", what, uses, why, want, words)
		}
	}
	check("unknown", s, one, true, "")
	s = do(t, s, found(s, down(one), up(two)))
	check("down", s, one, false, "down: connection refused")
	check("up", s, two, true, "")
	flaps := down(one)
	flaps.Flapping, flaps.Why = true, ""
	check("flapping", do(t, s, found(s, flaps)), one, false, "down, flapping")
	drain := SetEndpointAdmin{Service: "web", Endpoint: two.Address, Admin: AdminDrain}
	check("draining", do(t, s, drain), two, false, "draining")
	check("the last that is not drained is down", do(t, s, drain), one, true, "")
	check("set down", do(t, s, SetEndpointAdmin{Service: "web", Endpoint: two.Address, Admin: AdminDown}), two, false, "taken down by the operator")
	svc.Endpoints = slices.Clone(svc.Endpoints)
	svc.Endpoints[1].Weight = 0
	check("no weight", do(t, s, PutService{Service: svc}), two, false, "weight 0")
	all := do(t, s, found(s, down(two)))
	check("all down, open", all, one, true, "")
	check("all down, open", all, two, true, "")
	svc, _ = all.Service("web")
	if !all.AllEndpointsDown(svc) || s.AllEndpointsDown(svc) {
		t.Error("not all are down when they are, or the other way round")
	}
	svc.AllDown = AllDownClosed
	check("all down, closed", do(t, all, PutService{Service: svc}), one, false, "down: connection refused")
	if all.AllEndpointsDown(Service{}) {
		t.Error("a service without endpoints counts as down")
	}
}

func TestRouteIsWithdrawnWhenAllEndpointsAreDown(t *testing.T) {
	s, svc := probed(t)
	s = do(t, s, found(s, down(svc.Endpoints[0])))
	if !s.TakesNewFlows(svc.VIP) {
		t.Error("one is up, and the VIP counts as dead")
	}
	s = do(t, s, found(s, down(svc.Endpoints[1])))
	if s.TakesNewFlows(svc.VIP) {
		t.Error("all are down, and the VIP counts as alive")
	}
}

func TestVerdictMakesPlansAnew(t *testing.T) {
	s, svc := probed(t)
	next := do(t, s, found(s, down(svc.Endpoints[0])))
	if SharesConfig(s, next) || !SharesServices(s, next) {
		t.Error("a verdict makes no difference, or too much of one")
	}
	again := down(svc.Endpoints[0])
	again.Why, again.Since = "no answer in 1s", epoch0.Add(time.Hour)
	words := do(t, next, found(next, again))
	if !SharesConfig(next, words) || words.Health(again.Endpoint).Why != again.Why {
		t.Error("other words make plans anew, or were lost")
	}
	share := up(svc.Endpoints[0])
	share.Share = 10
	ten := do(t, next, found(next, share))
	share.Share = 20
	if SharesConfig(ten, do(t, ten, found(ten, share))) {
		t.Error("another share makes no difference")
	}
}

func TestHealthChanges(t *testing.T) {
	s, svc := probed(t)
	one, two := svc.Endpoints[0], svc.Endpoints[1]
	next := do(t, s, found(s, down(one)))
	want := []HealthChange{{"web", one, Verdict{Endpoint: one.ID, Health: HealthUnknown}, down(one)}}
	if diff := cmp.Diff(want, HealthChanges(s, next), sameValues()); diff != "" {
		t.Error(diff)
	}
	if got := HealthChanges(next, do(t, next, SetVoter{Node: "lb2"})); got != nil {
		t.Errorf("%+v", got)
	}
	gone := svc
	gone.Endpoints = []Endpoint{two}
	last := do(t, next, PutService{Service: gone}, found(next, up(two)))
	got := HealthChanges(next, last)
	if len(got) != 1 || got[0].Endpoint.ID != two.ID || got[0].Is.Health != HealthUp {
		t.Errorf("an endpoint is gone: %+v", got)
	}
}

func TestVerdictsAreInTheSnapshot(t *testing.T) {
	s, svc := probed(t)
	s = do(t, s, found(s, down(svc.Endpoints[0]), Verdict{Endpoint: svc.Endpoints[1].ID, Health: HealthUp, Since: epoch0.Add(time.Nanosecond), Share: 50, Flapping: true}))
	raw := snap(t, s)
	back, err := Restore(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Verdicts(), back.Verdicts(), sameValues()); diff != "" || len(back.Verdicts()) != 2 {
		t.Error(diff)
	}
	for name, change := range map[string][2]string{
		"about nobody": {`{"endpoint":1,`, `{"endpoint":77,`},
		"twice":        {`{"endpoint":1,`, `{"endpoint":2,`},
		"no health":    {`"health":"down"`, `"health":"unknown"`},
	} {
		bad := strings.Replace(string(raw), change[0], change[1], 1)
		if bad == string(raw) {
			t.Fatalf("%s: %s is not in %s", name, change[0], raw)
		}
		if _, err := Restore([]byte(bad)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestManyVerdictsAreMergedInOrder(t *testing.T) {
	s := threeNodes(t)
	svc := webService()
	svc.Probe, svc.Endpoints = Probe{Type: ProbeTCP}, manyEndpoints(100)
	s = do(t, s, PutService{Service: svc})
	svc, _ = s.Service("web")
	var odd, all []Verdict
	for i, e := range svc.Endpoints {
		if i%2 == 1 {
			odd = append(odd, down(e))
		}
		all = append(all, up(e))
	}
	slices.Reverse(all)
	s = do(t, s, found(s, odd...), found(s, append(slices.Clone(odd), all...)...))
	if len(s.Verdicts()) != 100 || !slices.IsSortedFunc(s.health.rows, func(a, b row[uint32, Verdict]) int { return int(a.key) - int(b.key) }) {
		t.Errorf("%d verdicts", len(s.Verdicts()))
	}
	for _, e := range svc.Endpoints {
		if s.Health(e.ID).Health != HealthUp {
			t.Fatalf("the last word on %s was not taken", e.Address)
		}
	}
}

// bigHealth is 40 services of 250 endpoints, and a verdict on each.
func bigHealth(b *testing.B) (*State, SetHealth) {
	s := threeNodes(b)
	for i := range 40 {
		svc := webService()
		svc.Name, svc.Port = "s"+string(rune('0'+i/10))+string(rune('0'+i%10)), uint16(1000+i)
		svc.Endpoints, svc.Probe = manyEndpoints(250), Probe{Type: ProbeTCP}
		s = do(b, s, PutService{Service: svc})
	}
	var verdicts []Verdict
	for _, svc := range s.Services() {
		for _, e := range svc.Endpoints {
			verdicts = append(verdicts, down(e))
		}
	}
	return s, found(s, verdicts...)
}

func BenchmarkApplyHealth(b *testing.B) {
	s, all := bigHealth(b)
	other := all
	other.Verdicts = slices.Clone(all.Verdicts)
	for i := range other.Verdicts {
		other.Verdicts[i].Health = HealthUp
	}
	full := do(b, s, all)
	for _, c := range []struct {
		name  string
		start *State
		cmds  [2]SetHealth
	}{
		{"verdicts=10000/known=0", s, [2]SetHealth{all, all}},
		{"verdicts=10000/known=10000", full, [2]SetHealth{other, all}},
		{"verdicts=1/known=10000", full, [2]SetHealth{found(full, other.Verdicts[5000]), found(full, all.Verdicts[5000])}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				do(b, c.start, c.cmds[i%2])
				i++
			}
		})
	}
}

func BenchmarkUsable10000(b *testing.B) {
	s, all := bigHealth(b)
	for i := range all.Verdicts {
		if i%250 == 0 {
			all.Verdicts[i].Health = HealthUp
		}
	}
	s = do(b, s, all)
	b.ReportAllocs()
	for b.Loop() {
		for _, svc := range s.Services() {
			for _, e := range svc.Endpoints {
				s.Usable(svc, e)
			}
		}
	}
}
