package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/fsm"
	"pontoon/node/announce"
)

// What a dry run promises of sessions is decided by fsm, what happens to them by the
// speaker. They must not disagree.
func TestADryRunSaysWhatTheSpeakerDoes(t *testing.T) {
	peer := fsm.BGPPeer{Address: mustAddr("192.0.2.254"), AS: 65001}
	b := fsm.New().BGP()
	put := func(change func(*fsm.BGPPeer)) fsm.Command {
		p := peer
		change(&p)
		return fsm.PutBGPPeer{Peer: p}
	}
	set := func(change func(*fsm.BGP)) fsm.Command {
		b := b
		change(&b)
		return fsm.PutBGP{BGP: b}
	}
	for name, c := range map[string]fsm.Command{
		"nothing":          put(func(*fsm.BGPPeer) {}),
		"as":               put(func(p *fsm.BGPPeer) { p.AS = 1 }),
		"local as":         put(func(p *fsm.BGPPeer) { p.LocalAS = 65009 }),
		"local as as is":   put(func(p *fsm.BGPPeer) { p.LocalAS = fsm.DefaultAS }),
		"port":             put(func(p *fsm.BGPPeer) { p.Port = 1790 }),
		"password":         put(func(p *fsm.BGPPeer) { p.Password = "x" }),
		"multihop":         put(func(p *fsm.BGPPeer) { p.Multihop = 2 }),
		"ttl security":     put(func(p *fsm.BGPPeer) { p.TTLSecurity = true }),
		"source":           put(func(p *fsm.BGPPeer) { p.Node, p.Source = "lb1", mustAddr("192.0.2.1") }),
		"passive":          put(func(p *fsm.BGPPeer) { p.Passive = true }),
		"hold":             put(func(p *fsm.BGPPeer) { p.Hold = fsm.Duration(30 * time.Second) }),
		"keepalive":        put(func(p *fsm.BGPPeer) { p.Keepalive = fsm.MinKeepalive }),
		"family":           put(func(p *fsm.BGPPeer) { p.Family = fsm.FamilyIPv6 }),
		"graceful restart": put(func(p *fsm.BGPPeer) { p.NoGracefulRestart = true }),
		"limit and bfd":    put(func(p *fsm.BGPPeer) { p.MaxPrefixes, p.BFD = 1, true }),
		"one node's":       fsm.PutBGPPeer{Peer: fsm.BGPPeer{Address: peer.Address, AS: 65001, Node: "lb1", Source: mustAddr("192.0.2.1")}},
		"another":          fsm.PutBGPPeer{Peer: fsm.BGPPeer{Address: mustAddr("2001:db8::1"), AS: 65001}},
		"removed":          fsm.DeleteBGPPeer{Address: peer.Address},
		"own as":           set(func(b *fsm.BGP) { b.AS = 7 }),
		"router id":        set(func(b *fsm.BGP) { b.Nodes = []fsm.BGPNode{{Node: "lb1", RouterID: mustAddr("192.0.2.9")}} }),
		"listen port":      set(func(b *fsm.BGP) { b.Port = 0 }),
		"restart time":     set(func(b *fsm.BGP) { b.RestartTime = fsm.MinRestartTime }),
		"import":           set(func(b *fsm.BGP) { b.Import, b.MaxImport = []fsm.ImportRule{{Prefix: netip.MustParsePrefix("::/0")}}, 1 }),
		"vip":              fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("10.0.0.9"), Announce: fsm.AnnounceBGP}},
	} {
		_, before := history(t, oneNode(fsm.PutBGPPeer{Peer: peer}, fsm.PutBGPPeer{Peer: fsm.BGPPeer{Address: mustAddr("192.0.2.253"), AS: 65002, LocalAS: 65003, NoGracefulRestart: true}})...)
		after, err := before.Apply(before.Index()+1, c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		said, done := map[netip.Addr]string{}, map[netip.Addr]string{}
		for _, ch := range fsm.SessionChanges(before, after) {
			said[ch.Peer] = fmt.Sprintf("%s, routes kept: %v", ch.Verb, ch.RoutesKept)
		}
		words := map[announce.PeerAction]fsm.SessionVerb{announce.PeerAdded: fsm.SessionAdded, announce.PeerReset: fsm.SessionReset, announce.PeerRemoved: fsm.SessionRemoved}
		for _, ch := range announce.Changes(bgpConfig(before, "lb1"), bgpConfig(after, "lb1")) {
			done[ch.Peer] = fmt.Sprintf("%s, routes kept: %v", words[ch.Action], ch.Quiet)
		}
		if diff := cmp.Diff(said, done, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: what is said and what is done differ: %s", name, diff)
		}
	}
}
