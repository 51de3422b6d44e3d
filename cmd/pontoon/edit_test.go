package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
)

// rivals are changes of what a command of the test changes, too, each of something else.
func rivals(t *testing.T, d *fakeDaemon, changes ...fsm.Command) {
	d.before = func() {
		if len(changes) == 0 {
			return
		}
		if _, err := d.Propose(t.Context(), changes[0]); err != nil {
			t.Error(err)
		}
		changes = changes[1:]
	}
}

// What somebody else has changed between reading and writing stays as well as the change of the command.
func TestTwoChangesAtOnceAreBothKept(t *testing.T) {
	peer := fsm.BGPPeer{Address: netip.MustParseAddr("192.168.80.1"), AS: 65101}
	svc := fsm.Service{Name: "web", VIP: netip.MustParseAddr("192.168.80.200"), Port: 80, Endpoints: []fsm.Endpoint{{Address: netip.MustParseAddrPort("10.2.0.2:80"), Weight: 1}}}
	pool := fsm.Pool{Name: "spare", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}}
	marked := pool
	marked.Default = true
	set := []fsm.Command{fsm.PutPool{Pool: pool}, fsm.PutVIP{VIP: fsm.VIP{Address: svc.VIP}}, fsm.PutService{Service: svc}, fsm.PutBGPPeer{Peer: peer}}
	rival, slow := peer, svc
	rival.MaxPrefixes = 7
	slow.IdleTimeout = fsm.Duration(time.Minute)
	for name, c := range map[string]struct {
		args []string
		by   fsm.Command
		want func(*fsm.State) bool
	}{
		"bgp set": {[]string{"bgp", "set", "--max-import", "7"}, fsm.PutBGP{BGP: fsm.BGP{AS: 65010, Port: 179}}, func(s *fsm.State) bool {
			return s.BGP().MaxImport == 7 && s.BGP().AS == 65010
		}},
		"bgp peer add": {[]string{"bgp", "peer", "add", "192.168.80.1", "--hold", "30s"}, fsm.PutBGPPeer{Peer: rival}, func(s *fsm.State) bool {
			p, _ := s.BGPPeer(peer.Address, "")
			return p.MaxPrefixes == 7 && p.Hold == fsm.Duration(30*time.Second)
		}},
		"bgp peer add, of a new one": {[]string{"bgp", "peer", "add", "192.168.80.2", "--as", "5"}, fsm.PutBGPPeer{Peer: fsm.BGPPeer{Address: netip.MustParseAddr("192.168.80.2"), AS: 6, MaxPrefixes: 7}}, func(s *fsm.State) bool {
			p, _ := s.BGPPeer(netip.MustParseAddr("192.168.80.2"), "")
			return p.MaxPrefixes == 7 && p.AS == 5
		}},
		"instance update": {[]string{"instance", "update", "default", "--as-prepend"}, fsm.PutInstance{Name: "default", Communities: []fsm.Community{"65000:100"}}, func(s *fsm.State) bool {
			in, _ := s.Instance("default")
			return in.ASPrepend && len(in.Communities) == 1
		}},
		"pool update": {[]string{"pool", "update", "spare", "--add-range", "10.9.1.1-10.9.1.9"}, fsm.PutPool{Pool: marked}, func(s *fsm.State) bool {
			p, _ := s.Pool("spare")
			return p.Default && len(p.CIDRs) == 1 && len(p.Ranges) == 1
		}},
		"pool update, beside a reservation": {[]string{"pool", "update", "spare", "--default"}, fsm.ReserveAddress{Address: netip.MustParseAddr("10.9.0.7")}, func(s *fsm.State) bool {
			p, _ := s.Pool("spare")
			return p.Default && len(p.Reservations) == 1
		}},
		"service update": {[]string{"service", "update", "web", "--algorithm", "maglev"}, fsm.PutService{Service: slow}, func(s *fsm.State) bool {
			v, _ := s.Service("web")
			return v.Algorithm == fsm.Maglev && v.IdleTimeout == fsm.Duration(time.Minute)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newFakeCluster()
			for _, cmd := range set {
				d.must(cmd)
			}
			rivals(t, d, c.by)
			a, out, errOut := testApp(startFake(t, d))
			if err := execute(t.Context(), a, c.args...); err != nil {
				t.Fatal(err, errOut)
			}
			if !c.want(d.State()) {
				t.Errorf("a change was lost: %+v %+v %+v %+v", d.State().BGP(), d.State().BGPPeers(), d.State().Instances(), d.State().Services())
			}
			if n := strings.Count(out.String(), "index"); n != 1 {
				t.Errorf("said %d times what was done:\n%s", n, out)
			}
		})
	}
}

// Who never gets through is told so, and has changed nothing.
func TestAChangeThatIsAlwaysTooLateIsRefusedInWords(t *testing.T) {
	d := newFakeCluster()
	var all []fsm.Command
	for i := range editTries {
		all = append(all, fsm.PutBGP{BGP: fsm.BGP{AS: uint32(65010 + i), Port: 179}})
	}
	rivals(t, d, all...)
	a, _, _ := testApp(startFake(t, d))
	if err := execute(t.Context(), a, "bgp", "set", "--max-import", "7"); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("got %v", err)
	}
	if b := d.State().BGP(); b.MaxImport == 7 || b.AS != 65010+editTries-1 {
		t.Errorf("settings %+v", b)
	}
}
