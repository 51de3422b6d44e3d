package node

import (
	"testing"
	"time"

	"pontoon/bpf"
)

func TestFullFlowTableIsToldOnceAMinute(t *testing.T) {
	start := time.Now()
	var w tableWatch
	for _, step := range []struct {
		after                time.Duration
		connections, refused uint64
		want                 string
	}{
		{0, 10, 500, ""}, // of an earlier life
		{2 * time.Second, 50, 500, ""},
		{4 * time.Second, 90, 500, "flow table nearly full: 90 of 100 connections"},
		{6 * time.Second, 95, 500, ""},
		{8 * time.Second, 100, 501, "flow table full: 100 of 100 connections; new ones are refused"},
		{30 * time.Second, 100, 900, ""},
		{69 * time.Second, 99, 900, "flow table full: 99 of 100 connections; new ones are refused"},
		{200 * time.Second, 85, 900, ""},
		{202 * time.Second, 92, 900, ""}, // still about as full
		{204 * time.Second, 79, 900, ""},
		{206 * time.Second, 92, 900, "flow table nearly full: 92 of 100 connections"},
		{208 * time.Second, 20, 901, "flow table full: 20 of 100 connections; new ones are refused"},
	} {
		use := bpf.TableUse{Connections: step.connections, Max: 100, Refused: step.refused}
		if got := w.look(start.Add(step.after), use); got != step.want {
			t.Errorf("after %s: %q, want %q", step.after, got, step.want)
		}
	}
}

func TestMetricsAndStatusShowTraffic(t *testing.T) {
	figures := bpf.EndpointStats{Flows: 1, Active: 2, New: 3, Forward: bpf.Volume{Packets: 4, Bytes: 5}, Reply: bpf.Volume{Packets: 6, Bytes: 7}}
	got := map[string]float64{}
	note := func(name, _ string, v float64, labels ...string) {
		for _, l := range labels {
			name += " " + l
		}
		got[name] = v
	}
	trafficMetrics("endpoint", traffic(figures), note, note, []string{"service", "web", "endpoint", "10.8.0.21:8080"})
	of := " service web endpoint 10.8.0.21:8080"
	for name, want := range map[string]float64{
		"endpoint_active_connections" + of:                   2,
		"endpoint_connections_total" + of:                    3,
		"endpoint_packets_total" + of + " direction forward": 4,
		"endpoint_bytes_total" + of + " direction forward":   5,
		"endpoint_packets_total" + of + " direction reply":   6,
		"endpoint_bytes_total" + of + " direction reply":     7,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if len(got) != 6 {
		t.Errorf("metrics: %v", got)
	}
}
