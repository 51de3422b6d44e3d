package node

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pontoon/fsm"
	"pontoon/node/host"
)

func TestOnlyAMasterThatStillForwardsIsAPredecessor(t *testing.T) {
	type masters = map[string]fsm.NodeID
	for _, tc := range []struct {
		name        string
		before, now masters
		change      func(*fsm.Node)
		want        []fsm.NodeID
	}{
		{"a planned move", masters{"x": "b"}, masters{"x": "a"}, nil, []fsm.NodeID{"b"}},
		{"several from one", masters{"x": "b", "y": "b"}, masters{"x": "a", "y": "a"}, nil, []fsm.NodeID{"b"}},
		{"from two", masters{"x": "b", "y": "c"}, masters{"x": "a", "y": "a"}, nil, []fsm.NodeID{"b", "c"}},
		{"it was this node", masters{"x": "a"}, masters{"x": "a"}, nil, nil},
		{"nobody was", masters{}, masters{"x": "a"}, nil, nil},
		{"it is no member any more", masters{"x": "z"}, masters{"x": "a"}, nil, nil},
		{"another node took it", masters{"x": "b"}, masters{"x": "c"}, nil, nil},
		{"the master before is dead", masters{"x": "b"}, masters{"x": "a"}, func(n *fsm.Node) { n.Alive = false }, nil},
		{"its data plane is not ready", masters{"x": "b"}, masters{"x": "a"}, func(n *fsm.Node) { n.Ready = false }, nil},
		{"a link of it is down", masters{"x": "b"}, masters{"x": "a"}, func(n *fsm.Node) { n.LinksUp = false }, nil},
	} {
		nodes := voters("a", "b", "c")
		for i := range nodes {
			nodes[i].Ready, nodes[i].LinksUp = true, true
		}
		if tc.change != nil {
			tc.change(&nodes[1])
		}
		if diff := cmp.Diff(tc.want, predecessors(tc.before, tc.now, nodes, "a")); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func TestAddressOnALinkIsANeighbours(t *testing.T) {
	p := netip.MustParsePrefix
	link := host.Link{Name: "eth1", Prefixes: []netip.Prefix{p("192.0.2.1/24"), p("2001:db8::1/64")}}
	for want, peer := range map[string][]linkAddr{
		"192.0.2.2":   {{"eth9", p("198.51.100.2/24")}, {"eth9", p("192.0.2.2/24")}},
		"2001:db8::2": {{"eth9", p("2001:db8::2/64")}},
		"none":        {{"eth9", p("198.51.100.2/24")}, {"eth9", p("192.0.2.1/24")}},
	} {
		got, ok := addressOn(link, peer)
		if ok != (want != "none") || ok && got.String() != want {
			t.Errorf("%v: %v %v", peer, got, ok)
		}
	}
}
