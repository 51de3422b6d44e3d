package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/bpf"
	"pontoon/fsm"
)

// probed is a service with three endpoints, of which something is known.
func probed(t *testing.T, change func(*fsm.Service), verdicts ...fsm.Verdict) []bpf.Endpoint {
	t.Helper()
	return probedService(t, change, verdicts...).Endpoints
}

func probedService(t *testing.T, change func(*fsm.Service), verdicts ...fsm.Verdict) bpf.Service {
	t.Helper()
	svc := fsm.Service{
		Name: "web", VIP: addr("192.168.80.200"), Port: 80, Probe: fsm.Probe{Type: fsm.ProbeTCP},
		Endpoints: []fsm.Endpoint{up("10.2.0.21:80", 1), up("10.2.0.22:80", 1), up("10.2.0.23:80", 4)},
	}
	change(&svc)
	s := build(t, base(fsm.PutService{Service: svc})...)
	for i := range verdicts {
		verdicts[i].Endpoint = mustService(t, s).Endpoints[i].ID
		verdicts[i].Since = time.Unix(1e9, 0).UTC()
	}
	node, epoch := s.Prober(fsm.DefaultInstance)
	s, err := s.Apply(s.Index()+1, fsm.SetHealth{Instance: fsm.DefaultInstance, Node: node, Epoch: epoch, Verdicts: verdicts})
	if err != nil {
		t.Fatal(err)
	}
	p := Compile(s, twoLeg("lb1", "11"))
	accepted(t, p)
	return p.Dataplane.Services[0]
}

func mustService(t *testing.T, s *fsm.State) fsm.Service {
	t.Helper()
	svc, ok := s.Service("web")
	if !ok {
		t.Fatal("no service")
	}
	return svc
}

func is(h fsm.Health) fsm.Verdict { return fsm.Verdict{Health: h} }

func TestVerdictsDecideWhoTakesNewFlows(t *testing.T) {
	same := func(*fsm.Service) {}
	closed := func(s *fsm.Service) { s.AllDown = fsm.AllDownClosed }
	up, down, unknown := is(fsm.HealthUp), is(fsm.HealthDown), is(fsm.HealthUnknown)
	const yes, dead, drain, off = bpf.EndpointUp, bpf.EndpointDead, bpf.EndpointDrain, bpf.EndpointDown
	for name, tc := range map[string]struct {
		change   func(*fsm.Service)
		verdicts []fsm.Verdict
		want     []bpf.EndpointState
	}{
		"not probed yet":                {same, []fsm.Verdict{unknown, unknown, unknown}, []bpf.EndpointState{yes, yes, yes}},
		"one is down":                   {same, []fsm.Verdict{up, down, up}, []bpf.EndpointState{yes, dead, yes}},
		"one is down, others not known": {same, []fsm.Verdict{unknown, down, unknown}, []bpf.EndpointState{yes, dead, yes}},
		"all are down, and open":        {same, []fsm.Verdict{down, down, down}, []bpf.EndpointState{yes, yes, yes}},
		"all are down, and closed":      {closed, []fsm.Verdict{down, down, down}, []bpf.EndpointState{dead, dead, dead}},
		"those that are left are down": {
			func(s *fsm.Service) { s.Endpoints[0].Admin, s.Endpoints[2].Weight = fsm.AdminDown, 0 },
			[]fsm.Verdict{up, down, up},
			[]bpf.EndpointState{off, yes, yes},
		},
		"a draining one is down": {
			func(s *fsm.Service) { s.Endpoints[1].Admin = fsm.AdminDrain },
			[]fsm.Verdict{up, down, up},
			[]bpf.EndpointState{yes, dead, yes},
		},
		"a draining one is up": {
			func(s *fsm.Service) { s.Endpoints[1].Admin = fsm.AdminDrain },
			[]fsm.Verdict{up, up, up},
			[]bpf.EndpointState{yes, drain, yes},
		},
		"one taken down is down": {
			func(s *fsm.Service) { s.Endpoints[1].Admin = fsm.AdminDown },
			[]fsm.Verdict{up, down, up},
			[]bpf.EndpointState{yes, off, yes},
		},
	} {
		var got []bpf.EndpointState
		for _, e := range probed(t, tc.change, tc.verdicts...) {
			got = append(got, e.State)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestAShareScalesTheWeight(t *testing.T) {
	weights := func(verdicts ...fsm.Verdict) []uint16 {
		var out []uint16
		for _, e := range probed(t, func(*fsm.Service) {}, verdicts...) {
			out = append(out, e.Weight)
		}
		return out
	}
	part := func(percent uint8) fsm.Verdict { return fsm.Verdict{Health: fsm.HealthUp, Share: percent} }
	for name, tc := range map[string]struct{ got, want []uint16 }{
		"whole":        {weights(part(0), part(0), part(0)), []uint16{1, 1, 4}},
		"a tenth":      {weights(part(10), part(0), part(0)), []uint16{1, 10, 40}},
		"less than it": {weights(part(1), part(0), part(0)), []uint16{1, 10, 40}},
		"nearly whole": {weights(part(0), part(0), part(90)), []uint16{10, 10, 36}},
		"two of them":  {weights(part(50), part(0), part(20)), []uint16{5, 10, 8}},
	} {
		if d := cmp.Diff(tc.want, tc.got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Whoever takes no new flows has no part of them to get: the weights of the others are not scaled for it, for as long as it stays so.
func TestWhoTakesNoNewFlowsScalesNoWeights(t *testing.T) {
	for name, change := range map[string]func(*fsm.Endpoint){
		"taken down":        func(e *fsm.Endpoint) { e.Admin = fsm.AdminDown },
		"drained":           func(e *fsm.Endpoint) { e.Admin = fsm.AdminDrain },
		"without a weight":  func(e *fsm.Endpoint) { e.Weight = 0 },
		"at a weight again": func(*fsm.Endpoint) {},
	} {
		var got []uint16
		own := func(s *fsm.Service) { change(&s.Endpoints[0]) }
		for _, e := range probed(t, own, fsm.Verdict{Health: fsm.HealthUp, Share: 30}, is(fsm.HealthUp), is(fsm.HealthUp)) {
			got = append(got, e.Weight)
		}
		want := []uint16{1, 4}
		if name == "at a weight again" {
			want = []uint16{10, 40}
		}
		if d := cmp.Diff(want, got[1:]); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestHealthPoliciesReachTheDataPlane(t *testing.T) {
	for policy, want := range map[fsm.DownPolicy]bpf.Policy{
		"": bpf.PolicyKeep, fsm.DownKeep: bpf.PolicyKeep, fsm.DownReset: bpf.PolicyReset, fsm.DownMove: bpf.PolicyMove,
	} {
		if got := probedService(t, func(s *fsm.Service) { s.OnDown = policy }).OnDead; got != want {
			t.Errorf("%q: %d, want %d", policy, got, want)
		}
	}
	if probedService(t, func(*fsm.Service) {}).Closed {
		t.Error("closed by default")
	}
	if !probedService(t, func(s *fsm.Service) { s.AllDown = fsm.AllDownClosed }).Closed {
		t.Error("not closed")
	}
}

// BenchmarkCompileServices is what a verdict costs before the data plane: 1000 services with ten endpoints each.
func BenchmarkCompileServices(b *testing.B) {
	s := fsm.New()
	do := func(c fsm.Command) {
		var err error
		if s, err = s.Apply(s.Index()+1, c); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range base() {
		do(c)
	}
	for i := range 1000 {
		svc := fsm.Service{Name: fmt.Sprintf("s%d", i), VIP: addr("192.168.80.200"), Port: uint16(1000 + i), Probe: fsm.Probe{Type: fsm.ProbeTCP}}
		for j := range 10 {
			svc.Endpoints = append(svc.Endpoints, up(fmt.Sprintf("10.2.0.21:%d", 1000+j), 1))
		}
		do(fsm.PutService{Service: svc})
	}
	node, epoch := s.Prober(fsm.DefaultInstance)
	var verdicts []fsm.Verdict
	for _, svc := range s.Services() {
		for _, e := range svc.Endpoints {
			verdicts = append(verdicts, fsm.Verdict{Endpoint: e.ID, Health: fsm.HealthUp, Since: time.Unix(1e9, 0).UTC()})
		}
	}
	do(fsm.SetHealth{Instance: fsm.DefaultInstance, Node: node, Epoch: epoch, Verdicts: verdicts})
	self := twoLeg("lb1", "11")
	for b.Loop() {
		CompileServices(s, self)
	}
}
