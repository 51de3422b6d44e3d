package node

import (
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pontoon/bpf"
	"pontoon/fsm"
)

func TestPacketsMayStrayWhereRoutersChooseTheNode(t *testing.T) {
	routed := fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.101"), Announce: fsm.AnnounceBGP}}
	linked := fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.102")}}
	vip := fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100"), Instance: "x", Announce: fsm.AnnounceBGP}}
	for _, tc := range []struct {
		name string
		cmds []fsm.Command
		want bool
	}{
		{"none", oneNode(), false},
		{"without a VIP", oneNode(fsm.PutInstance{Name: "x", Kind: fsm.InstanceECMP}), false},
		{"with one", oneNode(fsm.PutInstance{Name: "x", Kind: fsm.InstanceECMP}, vip), true},
		{"it has a master again", oneNode(fsm.PutInstance{Name: "x", Kind: fsm.InstanceECMP}, vip, fsm.PutInstance{Name: "x", Kind: fsm.InstanceBackup}), true},
		{"a VIP that routers learn", oneNode(routed), true},
		{"one on a link", oneNode(linked), false},
	} {
		if _, s := history(t, tc.cmds...); mayStray(s) != tc.want {
			t.Errorf("%s: %v", tc.name, !tc.want)
		}
	}
}

func TestWhoForwardsMayKnowAConnection(t *testing.T) {
	_, s := history(t, oneNode(
		fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true},
		fsm.DrainNode{Node: "lb1", Draining: true},
	)...)
	if got := forwarders(s, "lb2"); len(got) != 1 || got[0].Name != "lb1" {
		t.Errorf("a drained node: %v", got)
	}
	if got := forwarders(s, "lb1"); len(got) != 0 {
		t.Errorf("the node itself: %v", got)
	}
	_, s = history(t, oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true}, fsm.NodeVerdict{Node: "lb1", Reason: "test"})...)
	if got := forwarders(s, "lb2"); len(got) != 0 {
		t.Errorf("a dead node: %v", got)
	}
}

func TestPeersOnALinkAreToldBySlot(t *testing.T) {
	var p peersOn
	p.own = [6]byte{2, 0, 0, 0, 0, 1}
	p.there[3], p.macs[3] = true, [6]byte{2, 0, 0, 0, 0, 3}
	want := bpf.Peers{Own: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MACs: map[uint8]net.HardwareAddr{3: {2, 0, 0, 0, 0, 3}}}
	if diff := cmp.Diff(want, p.peers()); diff != "" {
		t.Error(diff)
	}
}

// What the data plane could not be told is told at the next pass, of links that are gone, too.
func TestPeersAreToldAgainWhereItFailed(t *testing.T) {
	of := func(mac byte) peersOn { return peersOn{own: [6]byte{2, 0, 0, 0, 0, mac}} }
	var asked []int
	broken := map[int]bool{}
	set := func(index int, _ bpf.Peers) error {
		asked = append(asked, index)
		if broken[index] {
			return errors.New("broken")
		}
		return nil
	}
	var told map[int]peersOn
	for i, pass := range []struct {
		now    map[int]peersOn
		broken int
		want   []int
	}{
		{map[int]peersOn{1: of(1), 2: of(2)}, 0, []int{1, 2}},
		{map[int]peersOn{1: of(1), 2: of(2)}, 0, nil},
		{map[int]peersOn{1: of(3), 2: of(2)}, 1, []int{1}},
		{map[int]peersOn{1: of(3), 2: of(2)}, 0, []int{1}},
		{map[int]peersOn{1: of(3)}, 2, []int{2}},
		{map[int]peersOn{1: of(3)}, 2, []int{2}},
		{map[int]peersOn{1: of(3)}, 0, []int{2}},
		{map[int]peersOn{1: of(3)}, 0, nil},
	} {
		asked, broken = nil, map[int]bool{pass.broken: true}
		var err error
		told, err = tellPeers(told, pass.now, set)
		if !slices.Equal(asked, pass.want) || (err != nil) != (pass.broken != 0) {
			t.Errorf("pass %d: told of %v (%v), want %v", i, asked, err, pass.want)
		}
	}
}
