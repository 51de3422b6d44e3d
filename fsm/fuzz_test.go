package fsm

import (
	"bytes"
	"net/netip"
	"testing"
)

// FuzzDecode holds that whatever decodes also encodes, to bytes that decode to
// the same, and that applying it never panics.
func FuzzDecode(f *testing.F) {
	for _, c := range allCommands() {
		b, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"v":2,"type":"x"}`))
	s := threeNodes(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		one, err := Encode(c)
		if err != nil {
			t.Fatalf("encode %+v: %v", c, err)
		}
		again, err := Decode(one)
		if err != nil {
			t.Fatalf("decode %s: %v", one, err)
		}
		if two, err := Encode(again); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%s became %s (%v)", one, two, err)
		}
		for _, base := range []*State{New(), s} {
			next, _ := base.Apply(base.Index()+1, c)
			back, err := Restore(snap(t, next))
			if err != nil {
				t.Fatalf("restore after %s: %v", one, err)
			}
			if !bytes.Equal(snap(t, back), snap(t, next)) {
				t.Fatalf("restore after %s gives another state", one)
			}
		}
	})
}

// FuzzRestore holds that whatever restores is canonical from then on and takes
// commands without a panic.
func FuzzRestore(f *testing.F) {
	f.Add(snap(f, New()))
	f.Add(snap(f, threeNodes(f)))
	f.Add(snap(f, do(f, threeNodes(f), PutVIP{VIP: VIP{Address: addr("10.0.0.9"), Announce: AnnounceBGP}},
		PutInstance{Name: DefaultInstance, NextHops: []netip.Addr{addr("10.0.0.9")}, Communities: []Community{"1:2"}},
		PutBGP{BGP: BGP{AS: 65001, Port: 179, Nodes: []BGPNode{{Node: "lb1", AS: 1}}, Import: []ImportRule{{Prefix: prefix("10.0.0.0/8")}}}},
		PutBGPPeer{Peer: fullPeer()})))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Restore(b)
		if err != nil {
			return
		}
		one := snap(t, s)
		back, err := Restore(one)
		if err != nil {
			t.Fatalf("restore of %s: %v", one, err)
		}
		if two := snap(t, back); !bytes.Equal(one, two) {
			t.Fatalf("%s became %s", one, two)
		}
		if s.Index() > 1<<62 {
			return
		}
		for _, c := range allCommands() {
			s, _ = s.Apply(s.Index()+1, c)
		}
		snap(t, s)
	})
}
