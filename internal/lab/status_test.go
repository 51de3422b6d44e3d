package lab

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAnEndpointIsDownWhenAllItsServicesSayAndTheNodeHasCarriedItOut(t *testing.T) {
	at := netip.MustParseAddrPort("10.2.0.22:8080")
	known := func(health ...string) Status {
		s := Status{Self: "lb1", Nodes: []NodeStatus{{Name: "lb1", Applied: 7}}}
		s.Cluster.Applied = 7
		for _, h := range health {
			s.Services = append(s.Services, ServiceStatus{Name: "web", Endpoints: []EndpointStatus{
				{Address: netip.MustParseAddrPort("10.2.0.21:8080"), Health: "up"}, {Address: at, Health: h, Error: "connection refused"},
			}})
		}
		return s
	}
	late := known("down")
	late.Nodes[0].Applied = 6
	for name, tc := range map[string]struct {
		s    Status
		want string // in the error, "" for none
	}{
		"of one service":        {known("down"), ""},
		"of two":                {known("down", "down"), ""},
		"of one of two":         {known("down", "up"), "is up"},
		"of none":               {known(), "knows no endpoint"},
		"known and not yet so":  {late, "carried out 6 of 7"},
		"the reason is told on": {known("unknown"), "connection refused"},
	} {
		err := tc.s.CheckEndpoint(at, "down")
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
