package fsm

import (
	"testing"
	"time"
)

func TestVerdictOnAnotherQuestionIsPassedOver(t *testing.T) {
	first := Probe{Type: ProbeHTTP, Path: "/old"}
	for _, tc := range []struct {
		name  string
		next  Probe
		taken bool
	}{
		{"the same", first, true},
		{"asked more often", Probe{Type: ProbeHTTP, Path: "/old", Interval: Duration(time.Second), Fall: 9}, true},
		{"another path", Probe{Type: ProbeHTTP, Path: "/new"}, false},
		{"another port", Probe{Type: ProbeHTTP, Path: "/old", Port: 8081}, false},
		{"another kind", Probe{Type: ProbeTCP}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := do(t, threeNodes(t), withProbe(first))
			svc, _ := asked.Service("web")
			say := found(asked, down(svc.Endpoints[0]))
			asked.Asked(say.Verdicts)
			if say.Verdicts[0].Question == 0 {
				t.Fatal("no question")
			}
			s := do(t, do(t, asked, withProbe(tc.next)), say)
			want := HealthUnknown
			if tc.taken {
				want = HealthDown
			}
			v := s.Health(svc.Endpoints[0].ID)
			if v.Health != want || v.Question != 0 {
				t.Errorf("%+v, want %s and no question", v, want)
			}
		})
	}
}

func TestEachEndpointIsAskedItsOwnQuestion(t *testing.T) {
	s, svc := probed(t)
	verdicts := []Verdict{down(svc.Endpoints[1]), down(svc.Endpoints[0]), {Endpoint: MaxID, Health: HealthUp}}
	s.Asked(verdicts)
	one, two := verdicts[1].Question, verdicts[0].Question
	if one == 0 || two == 0 || one == two || verdicts[2].Question != 0 {
		t.Fatalf("questions %d and %d, and %d to nobody", one, two, verdicts[2].Question)
	}
	verdicts[0].Question = one // another endpoint's
	s = do(t, s, found(s, verdicts...))
	if a, b := s.Health(svc.Endpoints[0].ID).Health, s.Health(svc.Endpoints[1].ID).Health; a != HealthDown || b != HealthUnknown {
		t.Errorf("%s and %s", a, b)
	}
}

func TestQuestionThroughTheVIPNamesTheVIP(t *testing.T) {
	_, svc := probed(t)
	svc.Probe.ThroughVIP = true
	other := svc
	other.Port++
	if e := svc.Endpoints[0]; questionTo(svc.question(), e) == questionTo(other.question(), e) {
		t.Error("the same question through two services")
	}
	svc.Probe.ThroughVIP, other.Probe.ThroughVIP = false, false
	if e := svc.Endpoints[0]; questionTo(svc.question(), e) != questionTo(other.question(), e) {
		t.Error("the service's port is no part of what the endpoint itself is asked")
	}
}
