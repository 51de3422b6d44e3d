package node

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pontoon/web"
)

func TestEachPathIsAFigure(t *testing.T) {
	got := map[string]float64{}
	detectionMetrics([]web.BFDSession{
		{Peer: "lb2", Kind: web.BFDEcho, Address: "192.0.2.2", Interface: "eth1", State: "up", RTTMS: 0.5},
		{Peer: "lb2", Kind: web.BFDEcho, Address: "198.51.100.2", Interface: "eth2", State: "down", RTTMS: 0.7},
		{Peer: "lb2", Kind: web.BFDAsync, Address: "192.0.2.2", Interface: "eth1", State: "up"},
		{Peer: "lb3", Kind: web.BFDNone, State: web.BFDNone},
	}, func(name, _ string, v float64, labels ...string) {
		got[fmt.Sprint(name, labels)] = v
	})
	want := map[string]float64{
		"detection_path_up[peer lb2 kind echo address 192.0.2.2 interface eth1]":          1,
		"detection_path_rtt_seconds[peer lb2 kind echo address 192.0.2.2 interface eth1]": 0.0005,
		"detection_path_up[peer lb2 kind echo address 198.51.100.2 interface eth2]":       0,
		"detection_path_up[peer lb2 kind async address 192.0.2.2 interface eth1]":         1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}
