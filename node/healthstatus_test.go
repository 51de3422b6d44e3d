package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/health"
	"pontoon/web"
)

func TestStatusTellsWhatThisNodeKnowsOfEndpoints(t *testing.T) {
	alive, dead, drained := socket("198.51.100.1:80"), socket("198.51.100.2:80"), socket("198.51.100.3:80")
	put := webOn("web", "192.0.2.100", alive.String(), dead.String(), drained.String())
	s := stateWith(t, balancers(t, 1), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, put,
		fsm.SetEndpointAdmin{Service: "web", Endpoint: drained, Admin: fsm.AdminDrain})
	p := &probing{prober: health.New(health.Options{})}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return p.prober.Run(ctx) })
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}()
	targets, _ := probeTargets(s, map[string]uint8{"default": 1})
	for i := range targets { // no other machine is there to be probed
		targets[i].Addr = listening(t, targets[i].Addr == alive)
	}
	p.prober.Want(targets)
	awaitTargets(t, p.prober, 3)
	var ids []uint32
	for _, target := range targets {
		ids = append(ids, target.Key)
	}
	p.reach(ctx, ids)
	svc, _ := s.Service("web")
	stats := bpf.Stats{Services: map[uint32]bpf.ServiceStats{svc.ID: {}}}
	services := serviceStatus(s, stats)
	for i := range services[0].Endpoints {
		services[0].Endpoints[i].Traffic.Active = 7
	}
	(&member{probing: p}).healthStatus(services)
	for _, e := range services[0].Endpoints {
		refused := strings.Contains(e.HealthError, "refused")
		if (e.Address == alive) == refused || (e.LatencyP50MS > 0) != (e.Address == alive) {
			t.Errorf("%+v", e)
		}
		if (e.DrainFlowsLeft == 7) != (e.Address == drained) {
			t.Errorf("%+v", e)
		}
	}
	(&member{}).healthStatus([]web.ServiceStatus{}) // of a witness
}

func TestMetricsTellOfEndpoints(t *testing.T) {
	s := stateWith(t, balancers(t, 1), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, webOn("web", "192.0.2.100", "198.51.100.1:80", "198.51.100.2:80", "198.51.100.3:80"))
	s = tell(t, s, "web", fsm.Verdict{Health: fsm.HealthUp, Share: 30}, fsm.Verdict{Health: fsm.HealthDown, Flapping: true})
	got := map[string]float64{}
	note := func(name, help string, v float64, labels ...string) {
		if help == "" || len(labels)%2 > 0 {
			t.Errorf("%s: %q, %q", name, help, labels)
		}
		got[name+" "+strings.Join(labels, " ")] = v
	}
	m := &member{}
	m.healthMetrics(s, note, note)
	endpointProbeMetrics(health.Result{Probes: 9, Failures: 2, P50: time.Millisecond, P99: time.Second}, []string{"service", "web"}, note, note)
	for name, want := range map[string]float64{
		"endpoint_up service web endpoint 198.51.100.1:80":         1,
		"endpoint_up service web endpoint 198.51.100.2:80":         0,
		"endpoint_share service web endpoint 198.51.100.1:80":      0.3,
		"endpoint_flapping service web endpoint 198.51.100.2:80":   1,
		"endpoint_probes_total service web":                        9,
		"endpoint_probe_failures_total service web":                2,
		"endpoint_probe_latency_seconds service web quantile 0.99": 1,
		"endpoint_probe_latency_seconds service web quantile 0.5":  0.001,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: %v, %t", name, v, ok)
		}
	}
	if _, ok := got["endpoint_up service web endpoint 198.51.100.3:80"]; ok {
		t.Error("something is said of an endpoint of which nothing is known")
	}
}
