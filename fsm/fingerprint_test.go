package fsm

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestFingerprintTellsWhatOperatorsHaveChanged(t *testing.T) {
	peer := BGPPeer{Address: addr("192.0.2.254"), AS: 65001, Password: "one"}
	pool := Pool{Name: "p", CIDRs: []netip.Prefix{prefix("10.3.0.0/24")}}
	s := do(t, threeNodes(t), PutVIP{VIP: VIP{Address: addr("10.0.0.9")}}, PutBGPPeer{Peer: peer}, PutService{Service: webService()}, PutPool{Pool: pool})
	svc := webService()
	of := func(s *State, c Command) string {
		t.Helper()
		tag, ok := s.Fingerprint(c)
		if !ok || tag == "" {
			t.Fatalf("%T has no fingerprint", c)
		}
		return tag
	}
	changed := peer
	changed.Hold = Duration(30 * time.Second)
	other := peer
	other.Password = "two"
	wide := svc
	wide.Algorithm = RoundRobin
	for name, r := range map[string]struct {
		of     Command
		change Command
		same   bool
	}{
		"service":              {PutService{Service: svc}, PutService{Service: wide}, false},
		"service, with a VIP":  {Batch{Commands: []Command{PutVIP{VIP: VIP{Address: svc.VIP}}, PutService{Service: svc}}}, PutService{Service: wide}, false},
		"endpoint drained":     {PutService{Service: svc}, SetEndpointAdmin{Service: svc.Name, Endpoint: svc.Endpoints[0].Address, Admin: AdminDrain}, false},
		"service, another VIP": {PutService{Service: svc}, PutVIP{VIP: VIP{Address: addr("10.0.0.9"), Announce: AnnounceBGP}}, true},
		"vip":                  {PutVIP{VIP: VIP{Address: addr("10.0.0.9")}}, PutVIP{VIP: VIP{Address: addr("10.0.0.9"), Announce: AnnounceBGP}}, false},
		"instance":             {PutInstance{Name: DefaultInstance}, PutInstance{Name: DefaultInstance, ASPrepend: true}, false},
		"instance that moves":  {PutInstance{Name: DefaultInstance}, MoveInstance{Name: DefaultInstance, To: "lb2"}, true},
		"peer":                 {PutBGPPeer{Peer: peer}, PutBGPPeer{Peer: changed}, false},
		"password":             {PutBGPPeer{Peer: peer}, PutBGPPeer{Peer: other}, true},
		"pool":                 {PutPool{Pool: pool}, PutPool{Pool: Pool{Name: "p", CIDRs: pool.CIDRs, Default: true}}, false},
		"reservation":          {PutPool{Pool: pool}, ReserveAddress{Address: addr("10.3.0.7")}, false},
		"address handed out":   {PutPool{Pool: pool}, auto("s", "p"), true},
		"settings":             {PutBGP{}, PutBGP{BGP: BGP{AS: 5, Port: 179}}, false},
		"peer and settings":    {PutBGP{}, PutBGPPeer{Peer: changed}, true},
	} {
		next := do(t, s, r.change)
		if same := of(s, r.of) == of(next, r.of); same != r.same {
			t.Errorf("%s: the fingerprint is the same: %v", name, same)
		}
	}
	if _, ok := s.Fingerprint(DeleteService{Name: svc.Name}); ok {
		t.Error("a deletion has one")
	}
}

func TestWhatHasChangedMeanwhileIsRefused(t *testing.T) {
	s := do(t, threeNodes(t), PutService{Service: webService()})
	put := PutService{Service: webService()}
	tag, _ := s.Fingerprint(put)
	if err := s.CheckFingerprint(put, tag); err != nil {
		t.Error(err)
	}
	gone := do(t, s, DeleteService{Name: put.Service.Name})
	for name, r := range map[string]struct {
		s    *State
		c    Command
		want string
		kind error
		text string
	}{
		"changed": {s, put, "another", ErrChanged, "changed meanwhile"},
		"created": {s, put, Absent, ErrChanged, "created meanwhile"},
		"deleted": {gone, put, tag, ErrChanged, "deleted meanwhile"},
		"nothing": {s, DrainNode{Node: "lb1"}, tag, ErrInvalid, "replaces nothing"},
	} {
		if err := r.s.CheckFingerprint(r.c, r.want); !errors.Is(err, r.kind) || !strings.Contains(err.Error(), r.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := gone.CheckFingerprint(put, Absent); err != nil {
		t.Error(err)
	}
}
