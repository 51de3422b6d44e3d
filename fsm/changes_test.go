package fsm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// configured has a VIP and the services "mail" and "web" on it.
func configured(t *testing.T) *State {
	t.Helper()
	return do(t, threeNodes(t), PutService{Service: Service{Name: "mail", VIP: addr("10.0.0.100"), Port: 25}})
}

func restored(t *testing.T, s *State) *State {
	t.Helper()
	r, err := Restore(snap(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestConfigChangesNamesWhatDiffers(t *testing.T) {
	prev := configured(t)
	other := addr("10.0.0.101")
	next := do(t, prev, PutVIP{VIP: VIP{Address: other}}, PutInstance{Name: "b"}, DeleteService{Name: "web"},
		PutService{Service: Service{Name: "mail", VIP: addr("10.0.0.100"), Port: 587}},
		PutService{Service: Service{Name: "zone", VIP: other, Port: 53, Protocol: UDP}},
		PutInstance{Name: DefaultInstance, AnnouncePolicy: PolicyMasterOnly},
		PutBGP{BGP: BGP{Port: DefaultBGPPort, AS: 65001}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1}},
		PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.201"), Node: "lb1", AS: 1}})
	want := []Change{
		{"service", "mail", Changed},
		{"service", "web", Deleted},
		{"service", "zone", Created},
		{"vip", "10.0.0.101", Created},
		{"instance", "b", Created},
		{"instance", "default", Changed},
		{"bgp peer", "192.0.2.201 on lb1", Created},
		{"bgp peer", "192.0.2.254", Created},
		{"bgp", "configuration", Changed},
	}
	if diff := cmp.Diff(want, ConfigChanges(prev, next)); diff != "" {
		t.Error(diff)
	}
	back := ConfigChanges(next, prev)
	if len(back) != len(want) || back[1].Verb != Created || back[2].Verb != Deleted {
		t.Errorf("the other way round: %v", back)
	}
}

func TestConfigChangesIgnoresWhatIsEqual(t *testing.T) {
	s := do(t, configured(t), PutBGP{BGP: BGP{AS: 65001}}, PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1}}, PutInstance{Name: DefaultInstance, ASPrepend: true})
	mail, _ := s.Service("mail")
	for name, next := range map[string]*State{
		"a verdict":      do(t, s, NodeVerdict{Node: "lb1"}),
		"the same again": do(t, s, PutService{Service: mail}),
		"restored":       restored(t, s),
		"an election":    do(t, s, MoveInstance{Name: DefaultInstance, To: "lb2"}),
	} {
		if c := ConfigChanges(s, next); len(c) != 0 {
			t.Errorf("%s: %v", name, c)
		}
	}
}

func TestSharesConfig(t *testing.T) {
	s := configured(t)
	mail, _ := s.Service("mail")
	mail.Port = 26
	for name, tc := range map[string]struct {
		next *State
		want bool
	}{
		"itself":          {s, true},
		"after a verdict": {do(t, s, NodeVerdict{Node: "lb1"}), true},
		"after bgp": {do(t, s, PutBGP{BGP: BGP{Port: 1790}}, PutBGPPeer{Peer: BGPPeer{Address: addr("192.0.2.254"), AS: 1}},
			PutInstance{Name: DefaultInstance, ASPrepend: true}), true},
		"another instance":  {do(t, s, PutInstance{Name: "b"}), false},
		"after a refusal":   {func() *State { n, _ := s.Apply(s.Index()+1, DeleteService{Name: "none"}); return n }(), true},
		"changed service":   {do(t, s, PutService{Service: mail}), false},
		"new vip":           {do(t, s, PutVIP{VIP: VIP{Address: addr("10.0.0.109")}}), false},
		"another cluster":   {New(), false},
		"equal, not shared": {restored(t, s), false},
	} {
		if got := SharesConfig(s, tc.next); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	two := do(t, s, PutInstance{Name: "b"})
	if SharesConfig(two, do(t, two, PutInstance{Name: "b", Kind: InstanceECMP})) || !SharesConfig(two, do(t, two, PutInstance{Name: "b", ASPrepend: true})) {
		t.Error("the kind of an instance counts, and nothing else of its settings")
	}
	if SharesConfig(New(), do(t, New(), initCluster())) {
		t.Error("a cluster that was just made shares its configuration with none")
	}
}
