package web

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/fsm"
)

// probeService makes the service of the world one that is probed.
func probeService(t *testing.T, b *fakeBackend) fsm.Service {
	t.Helper()
	svc, _ := b.State().Service("web")
	svc.Probe = fsm.Probe{Type: fsm.ProbeTCP}
	if _, err := b.Propose(t.Context(), fsm.PutService{Service: svc}); err != nil {
		t.Fatal(err)
	}
	svc, _ = b.State().Service("web")
	return svc
}

var healthSince = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// judge has the prober say that an endpoint is down.
func judge(t *testing.T, b *fakeBackend, verdicts ...fsm.Verdict) {
	t.Helper()
	node, epoch := b.State().Prober(fsm.DefaultInstance)
	for i := range verdicts {
		verdicts[i].Since = healthSince
	}
	if _, err := b.Propose(t.Context(), fsm.SetHealth{Instance: fsm.DefaultInstance, Node: node, Epoch: epoch, Verdicts: verdicts}); err != nil {
		t.Fatal(err)
	}
}

func readService(t *testing.T, h http.Handler) ServiceStatus {
	t.Helper()
	var got ServiceStatus
	w := do(h, "GET", "/v1/services/web", "")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return got
}

func TestServiceTellsTheVerdictOnItsEndpoints(t *testing.T) {
	b, o := world(t)
	b.runtime = nil
	h := handlerAt(t, b, o, AccessFull)
	svc := probeService(t, b)
	if e := readService(t, h).Endpoints[0]; e.Health != EndpointUnknown || e.WhyOut != "" || e.Share != 100 || !e.HealthSince.IsZero() {
		t.Errorf("before the first verdict: %+v", e)
	}
	judge(t, b, fsm.Verdict{Endpoint: svc.Endpoints[0].ID, Health: fsm.HealthDown, Why: "connection refused", Flapping: true},
		fsm.Verdict{Endpoint: svc.Endpoints[1].ID, Health: fsm.HealthUp, Share: 30})
	got := readService(t, h).Endpoints
	dead := EndpointStatus{
		ID: svc.Endpoints[0].ID, Address: svc.Endpoints[0].Address, Weight: 1, Admin: fsm.AdminUp, Health: EndpointDown, HealthSince: healthSince,
		HealthError: "connection refused", Flapping: true, Share: 100, WhyOut: "down, flapping: connection refused",
	}
	if diff := cmp.Diff(dead.WhyOut+dead.HealthError, got[0].WhyOut+got[0].HealthError); diff != "" || got[0] != dead {
		t.Errorf("got %+v\nwant %+v", got[0], dead)
	}
	if e := got[1]; e.Health != EndpointUp || e.Share != 30 || e.HealthError != "" || e.WhyOut != "" {
		t.Errorf("%+v", e)
	}
}

func TestDrainTellsHowManyFlowsAreLeft(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	if w := do(h, "POST", "/v1/services/web/endpoints/10.2.0.3:8080/drain", ""); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	b.runtime = func(st *Status) { st.Services[0].Endpoints[1].DrainFlowsLeft = 8 }
	got := readService(t, h).Endpoints
	if got[0].DrainFlowsLeft != 0 || got[1].DrainFlowsLeft != 8 || got[1].WhyOut != "draining" {
		t.Errorf("%+v", got)
	}
}

func TestServiceIsProbedAsItsProtocolIs(t *testing.T) {
	for _, c := range []struct {
		name, body string
		readable   int // the newest version all members read
		status     int
		want       fsm.ProbeType
		has        string
	}{
		{"tcp", `{}`, 0, 200, fsm.ProbeTCP, ""},
		{"sctp", `{"protocol":"sctp"}`, 0, 200, fsm.ProbeSCTP, ""},
		{"udp", `{"protocol":"udp"}`, 0, 200, fsm.ProbeNone, ""},
		{"said to be none", `{"probe":{"type":"none"}}`, 0, 200, fsm.ProbeNone, ""},
		{"said", `{"probe":{"type":"http","expect":"200"}}`, 0, 200, fsm.ProbeHTTP, ""},
		{"how often, not what", `{"probe":{"interval":"5s"}}`, 0, 200, fsm.ProbeTCP, ""},
		{"a member knows no probes", `{}`, 5, 200, fsm.ProbeNone, ""},
		{"a member knows no probes, and one is asked for", `{"probe":{"rise":4}}`, 5, 200, fsm.ProbeTCP, ""},
		{"wrong", `{"probe":{"type":"http","interval":"1ms","send":"x"},"on_down":"x"}`, 0, 422, "", `"location":"body.probe.send"`},
		{"no such key", `{"probe":{"typ":"http"}}`, 0, 422, "", "typ"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, o := world(t)
			b.readable = c.readable
			body := `{"vip":"192.168.80.200","port":90,` + strings.TrimPrefix(c.body, "{")
			body = strings.Replace(body, ",}", "}", 1)
			w := do(handlerAt(t, b, o, AccessFull), "PUT", "/v1/services/new?create=true", body)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.has) {
				t.Fatalf("%d %s, want %d with %s", w.Code, w.Body, c.status, c.has)
			}
			if svc, _ := b.State().Service("new"); svc.Probe.Type != c.want {
				t.Errorf("it is probed by %q, want %q", svc.Probe.Type, c.want)
			}
		})
	}
}

// What GET answers can be edited and sent back.
func TestServiceWithHealthSurvivesARoundTrip(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	svc, _ := b.State().Service("web")
	svc.Probe = fsm.Probe{Type: fsm.ProbeHTTPS, Port: 8443, Path: "/up", Body: "ok", TLSVerify: true}
	svc.OnDown, svc.AllDown, svc.SlowStart = fsm.DownReset, fsm.AllDownClosed, fsm.MinSlowStart
	if _, err := b.Propose(t.Context(), fsm.PutService{Service: svc}); err != nil {
		t.Fatal(err)
	}
	svc, _ = b.State().Service("web")
	judge(t, b, fsm.Verdict{Endpoint: svc.Endpoints[0].ID, Health: fsm.HealthDown, Why: "status 500, want 200-399"})
	before := b.State()
	answer := do(h, "GET", "/v1/services/web", "").Body.String()
	if w := do(h, "PUT", "/v1/services/web", answer); w.Code != 200 {
		t.Fatalf("%d %s\nfor %s", w.Code, w.Body, answer)
	}
	same := cmp.Comparer(func(a, b fsm.Service) bool {
		x, errx := json.Marshal(a)
		y, erry := json.Marshal(b)
		return errx == nil && erry == nil && string(x) == string(y)
	})
	if diff := cmp.Diff(before.Services(), b.State().Services(), same); diff != "" {
		t.Error(diff)
	}
	if len(b.State().Verdicts()) != 1 {
		t.Error("the verdict is lost by putting the service as it is")
	}
}

func TestSummaryTellsOfDeadEndpoints(t *testing.T) {
	endpoint := func(h EndpointHealth) EndpointStatus {
		return EndpointStatus{Address: ap("10.2.0.2:80"), Weight: 1, Admin: fsm.AdminUp, Health: h, HealthError: map[EndpointHealth]string{EndpointDown: "refused"}[h]}
	}
	drained := endpoint(EndpointDown)
	drained.Admin = fsm.AdminDrain
	many := make([]EndpointStatus, 5)
	for i := range many {
		many[i] = endpoint(EndpointDown)
	}
	for name, c := range map[string]struct {
		endpoints []EndpointStatus
		policy    fsm.AllDown
		level     Level
		text      string
	}{
		"all well":            {[]EndpointStatus{endpoint(EndpointUp), endpoint(EndpointUnknown)}, "", LevelOK, ""},
		"none at all":         {nil, "", LevelOK, ""},
		"one of two":          {[]EndpointStatus{endpoint(EndpointUp), endpoint(EndpointDown)}, "", LevelWarn, "Service web: 1 of 2 endpoints down: 10.2.0.2:80 (refused)."},
		"one that is drained": {[]EndpointStatus{endpoint(EndpointUp), drained}, "", LevelOK, ""},
		"all, open":           {[]EndpointStatus{endpoint(EndpointDown), drained}, fsm.AllDownOpen, LevelBad, "Service web: all endpoints are down, and new flows go to them all the same (all_down open): 10.2.0.2:80 (refused)."},
		"all, closed":         {many, fsm.AllDownClosed, LevelBad, "Service web: all endpoints are down, and new flows are refused (all_down closed): 10.2.0.2:80 (refused), 10.2.0.2:80 (refused), 10.2.0.2:80 (refused), and 2 more."},
	} {
		level, text := endpointNote(ServiceStatus{Service: fsm.Service{Name: "web", AllDown: c.policy}, Endpoints: c.endpoints})
		if level != c.level || text != c.text {
			t.Errorf("%s: %s %q, want %s %q", name, level, text, c.level, c.text)
		}
	}
	var services []ServiceStatus
	for range 8 {
		services = append(services, ServiceStatus{Service: fsm.Service{Name: "a"}, Endpoints: []EndpointStatus{endpoint(EndpointUp), endpoint(EndpointDown)}})
	}
	services[7].Name, services[7].Endpoints = "dead", many
	sum := Summarise(Status{Services: services, Cluster: ClusterStatus{Quorum: true, Leader: "lb1"}})
	notes := sum.Notes
	if len(notes) != 6 || sum.Level != LevelBad || !strings.HasPrefix(notes[0], "Service dead: all") || notes[5] != "3 services more with endpoints that are down: see pontoon endpoint list." {
		t.Errorf("%s %q", sum.Level, notes)
	}
}

func TestProbesAreDescribed(t *testing.T) {
	schemas := document(t)["components"].(map[string]any)["schemas"].(map[string]any)
	probe := schemas["Probe"].(map[string]any)
	if probe["required"] != nil {
		t.Errorf("a probe requires %v", probe["required"])
	}
	for name, v := range probe["properties"].(map[string]any) {
		if v.(map[string]any)["description"] == nil {
			t.Errorf("nothing is said about probe.%s", name)
		}
	}
	if got := probe["properties"].(map[string]any)["type"].(map[string]any)["enum"].([]any); len(got) != 8 {
		t.Errorf("types of probe: %v", got)
	}
	for schema, fields := range map[string][]string{
		"Service": {"probe", "on_down", "all_down", "slow_start"}, "ServiceStatus": {"probe", "on_down", "all_down", "slow_start"},
		"EndpointStatus": {"health", "health_since", "health_error", "flapping", "share", "why_out", "latency_p50_ms", "latency_p99_ms", "drain_flows_left"},
		"Endpoint":       {"health", "health_since", "health_error", "flapping", "share", "why_out", "latency_p50_ms", "latency_p99_ms", "drain_flows_left"},
	} {
		for _, f := range fields {
			if schemas[schema].(map[string]any)["properties"].(map[string]any)[f] == nil {
				t.Errorf("%s.%s is not described", schema, f)
			}
		}
	}
}
