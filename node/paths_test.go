package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/node/host"
)

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestOneAddressOfEachLinkIsTold(t *testing.T) {
	got := probeAddrs([]host.Link{
		{Name: "eth1", Prefixes: prefixes("fd00::1/64", "10.0.0.1/24", "10.0.1.1/24")},
		{Name: "eth2", Prefixes: prefixes("fd01::1/64")},
		{Name: "eth3", Prefixes: prefixes("10.9.9.9/32")},
		{Name: "eth4"},
	})
	want := []linkAddr{{"eth1", netip.MustParsePrefix("10.0.0.1/24")}, {"eth2", netip.MustParsePrefix("fd01::1/64")}}
	if !slices.Equal(got, want) {
		t.Fatalf("%v", got)
	}
}

func at(iface, prefix string) linkAddr { return linkAddr{iface, netip.MustParsePrefix(prefix)} }

// ways is waysTo in words: "echo lb2 10.0.0.1>10.0.0.2", in order.
func ways(own whereabouts, peers map[fsm.NodeID]whereabouts) []string {
	w := waysTo(own, peers)
	var out []string
	for kind, keys := range map[string][]detect.Key{"echo": w.echoes, "async": w.sessions} {
		for _, k := range keys {
			out = append(out, fmt.Sprintf("%s %s %v>%v %s", kind, w.owner[k], k.Local, k.Remote, k.Interface))
		}
	}
	slices.Sort(out)
	return out
}

func TestPathsLeadToPeersOnTheSameSubnetOnly(t *testing.T) {
	lb1 := whereabouts{links: []linkAddr{at("eth1", "10.0.0.1/24"), at("eth2", "fd01::1/64")}, control: []linkAddr{at("eth0", "10.9.0.1/24")}}
	w1 := whereabouts{witness: true, control: []linkAddr{at("ens1", "10.9.0.9/24"), at("ens2", "10.0.0.9/24")}}
	for _, tc := range []struct {
		name  string
		own   whereabouts
		peers map[fsm.NodeID]whereabouts
		want  []string
	}{
		{"load balancers", lb1, map[fsm.NodeID]whereabouts{
			"lb2": {links: []linkAddr{at("eth1", "10.0.0.2/24"), at("ens3", "fd01::2/64")}, control: []linkAddr{at("eth0", "10.9.0.2/24")}},
			"lb3": {links: []linkAddr{at("eth1", "10.0.7.3/24")}},
			"lb4": {links: []linkAddr{at("eth1", "10.0.0.1/24")}}, // our own address: a mistake of somebody's
		}, []string{
			"async lb2 10.0.0.1>10.0.0.2 eth1", "async lb2 fd01::1>fd01::2 eth2",
			"echo lb2 10.0.0.1>10.0.0.2 eth1", "echo lb2 fd01::1>fd01::2 eth2",
		}},
		{"to a witness there are sessions only", lb1, map[fsm.NodeID]whereabouts{"w1": w1}, []string{
			"async w1 10.0.0.1>10.0.0.9 eth1", "async w1 10.9.0.1>10.9.0.9 eth0",
		}},
		{"a witness probes the data planes it is on a link with", w1, map[fsm.NodeID]whereabouts{
			"lb1": lb1, "w2": {witness: true, control: []linkAddr{at("eth0", "10.9.0.8/24")}},
		}, []string{
			"async lb1 10.0.0.9>10.0.0.1 ens2", "async lb1 10.9.0.9>10.9.0.1 ens1", "async w2 10.9.0.9>10.9.0.8 ens1",
			"echo lb1 10.0.0.9>10.0.0.1 ens2",
		}},
		{"a witness elsewhere", whereabouts{witness: true, control: []linkAddr{at("eth0", "10.5.0.1/24")}}, map[fsm.NodeID]whereabouts{"lb1": lb1}, nil},
		{"an address that two claim", lb1, map[fsm.NodeID]whereabouts{
			"lb2": {links: []linkAddr{at("eth1", "10.0.0.2/24")}}, "lb3": {links: []linkAddr{at("eth1", "10.0.0.2/24"), at("eth2", "fd01::3/64")}},
		}, []string{"async lb3 fd01::1>fd01::3 eth2", "echo lb3 fd01::1>fd01::3 eth2"}},
	} {
		if got := ways(tc.own, tc.peers); !slices.Equal(got, tc.want) {
			t.Errorf("%s:\n%s\nwant\n%s", tc.name, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
}

func TestAWitnessTellsItsAddressesAndOthersThatOfTheCluster(t *testing.T) {
	all := []host.Link{
		{Name: "eth0", Prefixes: prefixes("10.9.0.1/24", "10.8.0.1/24", "10.7.7.7/32")},
		{Name: "eth1", Prefixes: prefixes("10.0.0.1/24")},
	}
	cluster := netip.MustParseAddr("10.8.0.1")
	for _, tc := range []struct {
		name    string
		data    []string
		cluster netip.Addr
		witness bool
		want    []linkAddr
	}{
		{"a witness", nil, cluster, true, []linkAddr{at("eth0", "10.8.0.1/24"), at("eth0", "10.9.0.1/24"), at("eth1", "10.0.0.1/24")}},
		{"a load balancer", []string{"eth1"}, cluster, false, []linkAddr{at("eth0", "10.8.0.1/24")}},
		{"its cluster address is on a data link", []string{"eth1"}, netip.MustParseAddr("10.0.0.1"), false, nil},
	} {
		if got := controlAddrs(all, tc.data, tc.cluster, tc.witness); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
