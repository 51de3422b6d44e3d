package node

import (
	"pontoon/fsm"
	"pontoon/node/health"
	"pontoon/web"
)

// healthStatus fills in what only this node knows of endpoints: how fast they answer its probes, what the last one that
// failed found, and how many flows those that are drained have left.
func (m *member) healthStatus(services []web.ServiceStatus) {
	var results map[uint32]health.Result
	if m.probing != nil {
		results = m.probing.results()
	}
	for i := range services {
		svc := &services[i]
		for j := range svc.Endpoints {
			e := &svc.Endpoints[j]
			if e.Admin == fsm.AdminDrain {
				e.DrainFlowsLeft = e.Traffic.Active
			}
			if r, ok := results[svc.Service.Endpoints[j].ID]; ok {
				if r.P50 > 0 {
					e.LatencyP50MS, e.LatencyP99MS = millis(r.P50), millis(r.P99)
				}
				if !r.Passed || r.Health == health.Down {
					e.HealthError = r.LastError
				}
			}
		}
	}
}

// healthMetrics tells what is known of endpoints, and what this node's probes cost and find.
func (m *member) healthMetrics(s *fsm.State, gauge, counter metricFunc) {
	var results map[uint32]health.Result
	if m.probing != nil {
		results = m.probing.results()
		m.probing.metrics(gauge, counter)
	}
	for _, svc := range s.Services() {
		if !svc.Probe.Active() {
			continue
		}
		for _, e := range svc.Endpoints {
			of := []string{"service", svc.Name, "endpoint", e.Address.String()}
			v := s.Health(e.ID)
			if v.Health != fsm.HealthUnknown {
				gauge("endpoint_up", "1 while the cluster holds the endpoint for up, 0 while for down. Absent while nothing is known.", truth(v.Health == fsm.HealthUp), of...)
				gauge("endpoint_flapping", "1 while the endpoint changes so often that it has to work for longer to count as up.", truth(v.Flapping), of...)
				gauge("endpoint_share", "Part of its weight that the endpoint gets, 0 to 1: less than 1 in its slow start.", float64(v.Percent())/100, of...)
			}
			if r, ok := results[e.ID]; ok {
				endpointProbeMetrics(r, of, gauge, counter)
			}
		}
	}
}

func endpointProbeMetrics(r health.Result, of []string, gauge, counter metricFunc) {
	counter("endpoint_probes_total", "Probes of the endpoint by this node. Endpoints that are probed alike share them.", float64(r.Probes), of...)
	counter("endpoint_probe_failures_total", "Those that failed.", float64(r.Failures), of...)
	if r.P50 == 0 {
		return
	}
	const help = "How long the last 64 probes took that the endpoint answered."
	gauge("endpoint_probe_latency_seconds", help, r.P50.Seconds(), append(of[:len(of):len(of)], "quantile", "0.5")...)
	gauge("endpoint_probe_latency_seconds", help, r.P99.Seconds(), append(of[:len(of):len(of)], "quantile", "0.99")...)
}

// metrics are those of the prober as a whole.
func (p *probing) metrics(gauge, counter metricFunc) {
	s := p.prober.Stats()
	p.mu.Lock()
	committed, held := p.committed, p.held
	p.mu.Unlock()
	gauge("probe_targets", "Endpoints that this node probes.", float64(s.Targets))
	gauge("probe_checks", "Different probes among them: what is the same is probed once.", float64(s.Checks))
	gauge("probes_in_flight", "Probes under way.", float64(s.Flying))
	gauge("probe_delay_seconds", "By how much the newest probe began later than it was due.", s.Late.Seconds())
	counter("probes_total", "Probes that ended with a result.", float64(s.Probes))
	counter("probe_failures_total", "Those that failed.", float64(s.Failures))
	counter("probes_void_total", "Probes that said nothing of the endpoint, because this node itself was in the way.", float64(s.Void))
	counter("health_verdicts_total", "Verdicts on endpoints that this node had committed.", float64(committed))
	gauge("health_verdicts_held", "Endpoints that answer this node's probes no more and are not called down, since this node doubts itself.", float64(held))
}
