package main

import (
	"bytes"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// sickService has an endpoint in each state there is.
func sickService() web.ServiceStatus {
	since := time.Now().Add(-90 * time.Second)
	s := web.ServiceStatus{Service: fsm.Service{Name: "web", Probe: fsm.Probe{Type: fsm.ProbeTCP}}}
	for i, e := range []web.EndpointStatus{
		{Health: web.EndpointUp, HealthSince: since, LatencyP50MS: 0.42, LatencyP99MS: 1.25, Share: 100},
		{Health: web.EndpointDown, HealthSince: since, HealthError: "connection refused", WhyOut: "down: connection refused", Share: 100},
		{Health: web.EndpointDown, HealthSince: since, HealthError: "no answer in 1s", Flapping: true, WhyOut: "down, flapping: no answer in 1s", Share: 100},
		{Health: web.EndpointUp, HealthSince: since, Flapping: true, Share: 40},
		{Health: web.EndpointUnknown, Admin: fsm.AdminDrain, DrainFlowsLeft: 7, WhyOut: "draining", Share: 100},
	} {
		if e.Admin == "" {
			e.Admin = fsm.AdminUp
		}
		e.Address, e.Weight, e.Flows = netip.AddrPortFrom(netip.MustParseAddr("10.2.0.2"), uint16(8081+i)), 10, 3
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func TestEndpointListTellsHowEndpointsAre(t *testing.T) {
	var out bytes.Buffer
	table := newTable(&out, false)
	drawEndpoints(table, []web.ServiceStatus{sickService()})
	drawOut(table, sickService())
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	squeezed := regexp.MustCompile(` {2,}`).ReplaceAllString(out.String(), " | ")
	want := `SERVICE | ENDPOINT | WEIGHT | ADMIN | STATE | SINCE | LATENCY P50/P99 | FLOWS | ERROR
web | 10.2.0.2:8081 | 10 | up | up | 1m30s | 0.4/1.2 ms | 3 | -
web | 10.2.0.2:8082 | 10 | up | down | 1m30s | - | 3 | connection refused
web | 10.2.0.2:8083 | 10 | up | down, flapping | 1m30s | - | 3 | no answer in 1s
web | 10.2.0.2:8084 | 10 (40%) | up | up, flapping | 1m30s | - | 3 | -
web | 10.2.0.2:8085 | 10 | draining | unknown | - | - | 7 left | -

TAKES NO NEW FLOWS | BECAUSE
10.2.0.2:8082 | down: connection refused
10.2.0.2:8083 | down, flapping: no answer in 1s
10.2.0.2:8085 | draining
`
	if squeezed != want {
		t.Errorf("got\n%s\nwant\n%s", squeezed, want)
	}
}

func TestDeadEndpointsAreRed(t *testing.T) {
	svc := sickService()
	for i, want := range []style{good, bad, bad, warn, plain} {
		if c := healthCell(svc.Service, svc.Endpoints[i]); c.style != want {
			t.Errorf("endpoint %d is %+v", i, c)
		}
	}
}

// When all are down and all are used, nobody should look for the reason in vain.
func TestServiceShowTellsThatDeadEndpointsAreUsed(t *testing.T) {
	svc := sickService()
	svc.Endpoints = svc.Endpoints[1:2]
	svc.Endpoints[0].WhyOut = ""
	var out bytes.Buffer
	table := newTable(&out, false)
	drawOut(table, svc)
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "TAKES NEW FLOWS THOUGH DOWN") || strings.Contains(got, "TAKES NO NEW FLOWS") || !strings.Contains(got, "all are down, and all_down is open") {
		t.Error(out.String())
	}
}
