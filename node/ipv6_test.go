package node

import (
	"net/netip"
	"strings"
	"testing"

	"pontoon/bpf"
	"pontoon/node/plan"
)

func TestClusterAddressHasOneForm(t *testing.T) {
	for given, want := range map[string]string{
		"192.0.2.11:7400":           "192.0.2.11:7400",
		"[FD00:0:0:80::0011]:7400":  "[fd00:0:0:80::11]:7400",
		"[fd00::80:0:0:11]:7400":    "[fd00::80:0:0:11]:7400",
		"[::ffff:192.0.2.11]:7400":  "192.0.2.11:7400",
		"[2001:0db8:0::0:1]:7400":   "[2001:db8::1]:7400",
		"no address, refused later": "no address, refused later",
	} {
		c := DefaultConfig()
		c.Cluster.Address = given
		if got := c.canonical().Cluster.Address; got != want {
			t.Errorf("%s becomes %s, want %s", given, got, want)
		}
	}
}

func TestClusterAddressOthersCannotReachIsRefused(t *testing.T) {
	for address, good := range map[string]bool{
		"[fd00:80::11]:7400": true, "[fe80::1%eth1]:7400": false, "[ff02::1]:7400": false, "[::]:7400": false, "224.0.0.1:7400": false,
	} {
		c := DefaultConfig()
		c.Name, c.DataPlane.Interfaces, c.Cluster.Address = "lb1", []string{"eth1"}, address
		err := c.Validate()
		if good != (err == nil) || !good && !strings.Contains(err.Error(), "cluster.address") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestIPv6IsPreparedOnlyWhereItIsUsed(t *testing.T) {
	addr := netip.MustParseAddr
	endpoint := func(a string) bpf.Service {
		return bpf.Service{
			VIP:       netip.AddrPortFrom(addr("192.0.2.200"), 80),
			Endpoints: []bpf.Endpoint{{Addr: netip.AddrPortFrom(addr("10.0.0.1"), 80)}, {Addr: netip.AddrPortFrom(addr(a), 80)}},
		}
	}
	for name, tc := range map[string]struct {
		plan plan.Plan
		want bool
	}{
		"nothing":           {plan.Plan{}, false},
		"an IPv4 VIP":       {plan.Plan{Managed: []netip.Addr{addr("192.0.2.200"), addr("::ffff:192.0.2.201")}}, false},
		"an IPv6 VIP":       {plan.Plan{Managed: []netip.Addr{addr("192.0.2.200"), addr("2001:db8::200")}}, true},
		"an IPv4 endpoint":  {plan.Plan{Dataplane: bpf.Desired{Services: []bpf.Service{endpoint("10.0.0.2")}}}, false},
		"an IPv6 endpoint":  {plan.Plan{Dataplane: bpf.Desired{Services: []bpf.Service{endpoint("2001:db8::2")}}}, true},
		"a mapped endpoint": {plan.Plan{Dataplane: bpf.Desired{Services: []bpf.Service{endpoint("::ffff:10.0.0.2")}}}, false},
	} {
		if got := usesIPv6(tc.plan); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	// No host is touched while there is no use for it: the driver has none here.
	if err := (&driver{}).prepareIPv6(); err != nil {
		t.Error(err)
	}
}
