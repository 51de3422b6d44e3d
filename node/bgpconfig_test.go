package node

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/detect"
	"pontoon/node/host"
	"pontoon/node/plan"
	"pontoon/web"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func linkWith(name string, prefixes ...string) host.Link {
	l := host.Link{Name: name, Up: true}
	for _, p := range prefixes {
		l.Prefixes = append(l.Prefixes, netip.MustParsePrefix(p))
	}
	return l
}

func TestConfigurationOfTheSpeakerIsThatOfTheState(t *testing.T) {
	s := stateWith(t, takeUpState(t, false, 0),
		fsm.PutBGP{BGP: fsm.BGP{AS: 65001, Port: 1179, RestartTime: fsm.Duration(time.Minute), MaxImport: 7, Import: []fsm.ImportRule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), MaxLen: 24}}}},
		fsm.PutBGPPeer{Peer: fsm.BGPPeer{
			Address: addr("192.168.80.1"), Node: "lb1", AS: 65101, LocalAS: 65002, Port: 1180, Password: "secret", TTLSecurity: true,
			Hold: fsm.Duration(30 * time.Second), Keepalive: fsm.Duration(5 * time.Second), Source: addr("192.168.80.11"), Family: fsm.FamilyIPv6, MaxPrefixes: 9, BFD: true,
		}},
		fsm.PutBGPPeer{Peer: fsm.BGPPeer{Address: addr("192.168.80.2"), AS: 65101, Passive: true, NoGracefulRestart: true}})
	got := bgpConfig(s, "lb1")
	if got.AS != 65001 || !got.RouterID.Is4() || got.Port != 1179 || got.RestartTime != time.Minute || got.MaxImport != 7 || !got.Multipath {
		t.Errorf("%+v", got)
	}
	if want := (announce.ImportRule{Prefix: netip.MustParsePrefix("10.0.0.0/8"), MinLen: 8, MaxLen: 24}); len(got.Import) != 1 || got.Import[0] != want {
		t.Errorf("import %+v", got.Import)
	}
	want := []announce.BGPPeer{
		{
			Address: addr("192.168.80.1"), AS: 65101, LocalAS: 65002, Port: 1180, Password: "secret", TTLSecurity: true,
			Hold: 30 * time.Second, Keepalive: 5 * time.Second, Source: addr("192.168.80.11"), IPv6: true, GracefulRestart: true, MaxPrefixes: 9,
		},
		{
			Address: addr("192.168.80.2"), AS: 65101, Port: 179, Passive: true,
			Hold: 9 * time.Second, Keepalive: 3 * time.Second, IPv4: true, IPv6: true, MaxPrefixes: 10000,
		},
	}
	if !slices.Equal(got.Peers, want) {
		t.Errorf("peers %+v, want %+v", got.Peers, want)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("the speaker refuses it: %v", err)
	}
	if peers := bgpConfig(s, "lb2").Peers; len(peers) != 1 || peers[0].Address != addr("192.168.80.2") {
		t.Errorf("lb2 speaks with %v", peers)
	}
	if nobody := bgpConfig(s, ""); len(nobody.Peers) > 0 || nobody.Port != 0 {
		t.Errorf("who is no member has %+v", nobody)
	}
}

func TestWhatIsWantedIsEqualOnlyWhenNothingOfItDiffers(t *testing.T) {
	base := func() speaking {
		return speaking{known: true, graceful: true, routes: []plan.Route{routeTo("203.0.113.1", true)}, withheld: []netip.Addr{addr("203.0.113.2")}}
	}
	if !base().equal(base()) {
		t.Error("not equal to itself")
	}
	for name, change := range map[string]func(*speaking){
		"known":     func(w *speaking) { w.known = false },
		"graceful":  func(w *speaking) { w.graceful = false },
		"withheld":  func(w *speaking) { w.withheld = nil },
		"config":    func(w *speaking) { w.config.AS = 1 },
		"med":       func(w *speaking) { w.routes[0].MED++ },
		"pref":      func(w *speaking) { w.routes[0].LocalPref++ },
		"prepend":   func(w *speaking) { w.routes[0].Prepend++ },
		"next hop":  func(w *speaking) { w.routes[0].NextHop = addr("192.0.2.1") },
		"community": func(w *speaking) { w.routes[0].Communities = []uint32{1} },
		"large":     func(w *speaking) { w.routes[0].LargeCommunities = [][3]uint32{{1, 2, 3}} },
		"epoch":     func(w *speaking) { w.routes[0].Epoch = 7 },
		"no route":  func(w *speaking) { w.routes = nil },
	} {
		w := base()
		if change(&w); w.equal(base()) {
			t.Errorf("%s makes no difference", name)
		}
	}
}

func TestARouterIsWatchedOnTheLinkItIsOn(t *testing.T) {
	links := []host.Link{
		linkWith("eth0", "10.0.0.11/8", "192.168.80.11/24"), linkWith("eth1", "10.2.0.11/24", "10.2.0.12/24", "2001:db8:2::11/64"),
	}
	watched := func(a, source string) fsm.BGPPeer {
		p := fsm.BGPPeer{Address: addr(a), BFD: true, BFDInterval: fsm.Duration(50 * time.Millisecond), BFDMultiplier: 4}
		if source != "" {
			p.Source = addr(source)
		}
		return p
	}
	for name, tc := range map[string]struct {
		peer  fsm.BGPPeer
		local string
		iface string
	}{
		"on one":                    {watched("192.168.80.1", ""), "192.168.80.11", "eth0"},
		"the longest prefix":        {watched("10.2.0.1", ""), "10.2.0.11", "eth1"},
		"the source that was given": {watched("10.2.0.1", "10.2.0.12"), "10.2.0.12", "eth1"},
		"IPv6":                      {watched("2001:db8:2::1", ""), "2001:db8:2::11", "eth1"},
		"nowhere":                   {watched("172.16.0.1", ""), "", ""},
		"not where the source is":   {watched("192.168.80.1", "10.2.0.12"), "", ""},
		"this machine itself":       {watched("192.168.80.11", ""), "10.0.0.11", ""},
		"not asked for":             {fsm.BGPPeer{Address: addr("192.168.80.1")}, "", ""},
	} {
		got, problems := routerSessions([]fsm.BGPPeer{tc.peer}, links)
		if tc.iface == "" {
			if len(got) > 0 || (len(problems) > 0) != tc.peer.BFD {
				t.Errorf("%s: %v, %q", name, got, problems)
			}
			continue
		}
		want := detect.Session{
			Key:    detect.Key{Local: addr(tc.local), Remote: tc.peer.Address, Interface: tc.iface},
			Config: detect.Config{DesiredMinTx: 50 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond, DetectMult: 4},
		}
		if len(got) != 1 || got[0] != want || len(problems) > 0 {
			t.Errorf("%s: %+v, %q", name, got, problems)
		}
	}
}

func TestOnlyStrangersRoutesAreTaken(t *testing.T) {
	links := []host.Link{linkWith("eth1", "192.168.80.11/24", "2001:db8:80::11/64"), linkWith("lo", "203.0.113.9/32")}
	vips := []fsm.VIP{{Address: addr("203.0.113.1")}}
	for prefix, tc := range map[string]struct {
		hops  string
		taken int
		why   string
	}{
		"0.0.0.0/0":            {"192.168.80.1", 1, ""},
		"10.0.0.0/8":           {"192.168.80.1 192.168.80.2", 2, ""},
		"10.1.0.0/16":          {"192.168.80.1 192.168.80.11", 1, ""},
		"10.2.0.0/16":          {"192.168.80.11", 0, "its next hop is this machine"},
		"10.3.0.0/16":          {"203.0.113.1", 0, "its next hop is this machine"},
		"203.0.113.1/32":       {"192.168.80.1", 0, "an address of this cluster"},
		"203.0.113.9/32":       {"192.168.80.1", 0, "an address of this cluster"},
		"203.0.113.0/24":       {"192.168.80.1", 1, ""},
		"192.168.80.0/24":      {"192.168.80.1", 0, "subnet 192.168.80.0/24 of eth1"},
		"192.168.80.12/32":     {"192.168.80.1", 0, "subnet"},
		"192.168.0.0/16":       {"192.168.80.1", 1, ""},
		"2001:db8:80::/64":     {"2001:db8:80::1", 0, "subnet"},
		"2001:db8:80:0:1::/80": {"2001:db8:80::1", 0, "subnet"},
		"2001:db8::/32":        {"2001:db8:80::1", 1, ""},
	} {
		l := announce.Learned{Prefix: netip.MustParsePrefix(prefix)}
		for _, h := range strings.Fields(tc.hops) {
			l.NextHops = append(l.NextHops, addr(h))
		}
		routes, refused := importable([]announce.Learned{l}, vips, links)
		if tc.taken == 0 {
			if len(routes) > 0 || len(refused) != 1 || !strings.Contains(refused[0], tc.why) {
				t.Errorf("%s: %v, %q", prefix, routes, refused)
			}
			continue
		}
		if len(routes) != 1 || len(routes[0].NextHops) != tc.taken || len(refused) > 0 {
			t.Errorf("%s: %v, %q", prefix, routes, refused)
		}
	}
}

func TestLearnedRoutesSettleWhenAllHaveHadTheTimeToTell(t *testing.T) {
	now := time.Unix(1e6, 0)
	peer := func(state announce.PeerState, since time.Duration) announce.PeerStatus {
		return announce.PeerStatus{State: state, Since: now.Add(-since)}
	}
	for name, tc := range map[string]struct {
		peers []announce.PeerStatus
		since time.Duration
		want  bool
	}{
		"nobody to wait for":   {nil, 0, true},
		"up for a while":       {[]announce.PeerStatus{peer(announce.StateEstablished, importSettles)}, time.Second, true},
		"just up":              {[]announce.PeerStatus{peer(announce.StateEstablished, importSettles-1)}, time.Second, false},
		"one is not":           {[]announce.PeerStatus{peer(announce.StateEstablished, time.Hour), peer(announce.StateActive, time.Hour)}, time.Second, false},
		"one never, but so be": {[]announce.PeerStatus{peer(announce.StateIdle, time.Hour)}, time.Minute, true},
	} {
		if got := settled(tc.peers, now.Add(-tc.since), time.Minute, now); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestSessionsTellWhatBecomesOfThem(t *testing.T) {
	peer := func(state announce.PeerState, flaps int, why string) []announce.PeerStatus {
		return []announce.PeerStatus{{Address: addr("192.168.80.1"), AS: 65101, State: state, Flaps: flaps, Error: why}}
	}
	known := map[netip.Addr]session{}
	for i, step := range []struct {
		now  []announce.PeerStatus
		want string // "": nothing is told
	}{
		{peer(announce.StateActive, 0, ""), ""},
		{peer(announce.StateIdle, 0, "wrong AS"), "does not come up: wrong AS"},
		{peer(announce.StateActive, 0, "wrong AS"), ""},
		{peer(announce.StateActive, 0, "refused"), "does not come up: refused"},
		{peer(announce.StateActive, 0, "wrong AS"), ""},
		{peer(announce.StateOpenConfirm, 0, ""), ""},
		{peer(announce.StateEstablished, 0, ""), "with 192.168.80.1 (AS 65101) is up"},
		{peer(announce.StateEstablished, 0, ""), ""},
		{peer(announce.StateEstablished, 1, ""), "was down and is up again"},
		{peer(announce.StateIdle, 2, "hold time"), "is down: hold time"},
		{peer(announce.StateActive, 2, "hold time"), ""},
		{peer(announce.StateActive, 2, "refused"), "does not come up: refused"},
		{peer(announce.StateEstablished, 2, ""), "is up"},
		{nil, "has ended"},
		{nil, ""},
	} {
		var news []Event
		known, news = sessionNews(known, step.now, "lb1")
		switch {
		case step.want == "" && len(news) > 0, step.want != "" && len(news) != 1:
			t.Errorf("step %d: %+v, want %q", i, news, step.want)
		case step.want != "" && (!strings.Contains(news[0].Text, step.want) || news[0].Kind != web.EventBGP || news[0].Fields["peer"] != "192.168.80.1"):
			t.Errorf("step %d: %+v, want %q", i, news, step.want)
		}
	}
}

func TestVIPsThatLoseTheirEndpointsAreToldOf(t *testing.T) {
	var many []netip.Addr
	for i := range 1000 {
		many = append(many, netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}))
	}
	one := []netip.Addr{addr("203.0.113.1")}
	back := []plan.Route{routeTo("203.0.113.1", true)}
	for name, tc := range map[string]struct {
		before, now []netip.Addr
		routes      []plan.Route
		want        string
	}{
		"as before":         {one, one, nil, ""},
		"one":               {nil, one, nil, "VIP 203.0.113.1 is not announced: no endpoint takes new connections"},
		"one is back":       {one, nil, back, "VIP 203.0.113.1 is announced again: an endpoint takes new connections"},
		"one that is gone":  {one, nil, nil, ""},
		"two":               {nil, many[:2], nil, "VIPs 203.0.0.0, 203.0.0.1 are not announced: no endpoint takes new connections"},
		"all of a thousand": {nil, many, nil, "VIPs 203.0.0.0, 203.0.0.1, 203.0.0.2, 203.0.0.3, 203.0.0.4 and 995 more are not announced: no endpoint takes new connections"},
	} {
		got := withheldEvents(tc.before, tc.now, tc.routes, "lb1")
		if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || got[0].Text != tc.want) {
			t.Errorf("%s: %+v, want %q", name, got, tc.want)
		}
	}
}

func TestCommunitiesAreWrittenAsTheyAreRead(t *testing.T) {
	r := webRoute(announce.RouteView{Peer: addr("192.0.2.1"), Communities: []uint32{65535 << 16, 65000<<16 | 100}, LargeCommunities: [][3]uint32{{65000, 1, 2}}}, true)
	if want := []fsm.Community{fsm.GracefulShutdown, "65000:100", "65000:1:2"}; !slices.Equal(r.Communities, want) || !r.Best {
		t.Errorf("%+v", r)
	}
}

func TestRestingSessionsAreTakenUpOnceAndInTime(t *testing.T) {
	left := `{"since":1000,"until":2000,"sessions":[{"Local":"10.0.0.1","Remote":"10.0.0.2","Interface":"eth1","Config":{"DesiredMinTx":50000000,"DetectMult":3},"Resume":{"local":7,"remote":8}}]}`
	want := detect.Session{
		Key:    detect.Key{Local: addr("10.0.0.1"), Remote: addr("10.0.0.2"), Interface: "eth1"},
		Config: detect.Config{DesiredMinTx: 50 * time.Millisecond, DetectMult: 3}, Resume: detect.Resume{Local: 7, Remote: 8},
	}
	for now, there := range map[time.Duration]bool{999: false, 1000: true, 2000: true, 2001: false} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, restFile), []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := takeResting(dir, now)
		if err != nil || there != (len(got) == 1 && got[0] == want) || !there && len(got) > 0 {
			t.Errorf("at %d: %+v, %v", now, got, err)
		}
		if again, err := takeResting(dir, now); len(again) > 0 || err != nil {
			t.Errorf("taken up twice: %+v, %v", again, err)
		}
	}
	// What is wanted by the state goes on as it was taken up.
	kept := resuming([]detect.Session{{Key: want.Key}, {Key: detect.Key{Interface: "eth2"}}}, []detect.Session{want})
	if kept[0].Resume != want.Resume || kept[1].Resume != (detect.Resume{}) {
		t.Errorf("%+v", kept)
	}
}

func TestOnlyALostNeighbourIsReset(t *testing.T) {
	key := detect.Key{Local: addr("192.168.80.11"), Remote: addr("192.168.80.1"), Interface: "eth1"}
	for name, tc := range map[string]struct {
		diag  detect.Diag
		is    detect.Status
		reset string
	}{
		"silent":          {detect.DiagExpired, detect.Status{Key: key}, "BFD: it has gone silent on eth1"},
		"one direction":   {detect.DiagNeighbourDown, detect.Status{Key: key}, "BFD: it does not hear this node on eth1"},
		"by its decision": {detect.DiagNeighbourDown, detect.Status{Key: key, Farewell: true}, ""},
	} {
		if text, reset := verdictOf(fall{key, tc.diag}, tc.is); reset != tc.reset || !strings.Contains(text, "192.168.80.1") {
			t.Errorf("%s: %q, %q", name, text, reset)
		}
	}
}

// What a router's session does is told to who resets BGP, and to nobody who judges nodes.
func TestASessionWithARouterIsNoWordAboutANode(t *testing.T) {
	m := &member{cfg: Config{Name: "lb1"}, logger: slog.New(slog.DiscardHandler), store: newStore()}
	d := newDetector(m)
	router := detect.Key{Local: addr("192.168.80.11"), Remote: addr("192.168.80.1"), Interface: "eth1"}
	other := router
	other.Remote = addr("192.168.80.12")
	d.routers = []detect.Session{{Key: router}}
	d.watch = watch{sessions: []detect.Key{other}, owner: map[detect.Key]fsm.NodeID{other: "lb2"}}
	d.sessionChanged(other, detect.Change{From: detect.Up, To: detect.Down, Diag: detect.DiagExpired})
	d.sessionChanged(router, detect.Change{From: detect.Down, To: detect.Up})
	d.sessionChanged(router, detect.Change{From: detect.Up, To: detect.Down, Diag: detect.DiagExpired})
	if got := d.takeFallen(); len(got) != 1 || got[0] != (fall{router, detect.DiagExpired}) {
		t.Errorf("fallen %+v", got)
	}
	gone := detect.Status{Key: router, State: detect.Down, WasUp: true}
	if lost := see(nil, []detect.Status{gone}, d.watch); len(lost.lost)+len(lost.links) > 0 {
		t.Errorf("%+v", lost)
	}
	if err := d.setSessions(); err != nil {
		t.Fatal(err)
	}
	if all := d.sessions.Sessions(); len(all) != 2 {
		t.Errorf("the driver has %+v", all)
	}
}
