package web

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pontoon/fsm"
)

func decoded[T any](t *testing.T, body []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

func TestBGPSettingsAreShownWithWhatFollowsAndCanBeSentBack(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	body := `{"as":65010,"port":0,"restart_time":"90s","nodes":[{"node":"lb2","as":65020},{"node":"lb3","router_id":"192.0.2.9"}],
"import":[{"prefix":"10.0.0.0/8","max_len":24}],"max_import":7}`
	if w := do(h, "PUT", "/v1/bgp", body); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	got := do(h, "GET", "/v1/bgp", "").Body.String()
	st := decoded[BGPSettings](t, []byte(got))
	if st.AS != 65010 || st.Port != 0 || st.MaxImport != 7 || st.Import[0].MinLen != 8 || len(st.Speakers) != 3 {
		t.Errorf("settings %+v", st)
	}
	want := []BGPSpeaker{
		{"lb1", 65010, netip.MustParseAddr("192.168.80.11")},
		{"lb2", 65020, netip.MustParseAddr("192.168.80.12")},
		{"lb3", 65010, netip.MustParseAddr("192.0.2.9")},
	}
	if diff := cmp.Diff(want, st.Speakers, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if w := do(h, "PUT", "/v1/bgp", got); w.Code != 200 {
		t.Fatalf("sent back: %d %s", w.Code, w.Body)
	}
	if again := do(h, "GET", "/v1/bgp", "").Body.String(); again != got {
		t.Errorf("was\n%s\nis\n%s", got, again)
	}
}

const fullPeerBody = `{"node":"lb1","as":65101,"local_as":65102,"port":1790,"password":"hush","ttl_security":true,"passive":true,
"hold":"30s","keepalive":"5s","source":"192.168.80.11","family":"ipv4","no_graceful_restart":true,"max_prefixes":5,
"bfd":true,"bfd_interval":"300ms","bfd_multiplier":4}`

func TestEverySettingOfABGPPeerIsTakenAndShownButNoPassword(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	if w := do(h, "PUT", "/v1/bgp/peers/192.168.80.1?node=lb1", fullPeerBody); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	got := do(h, "GET", "/v1/bgp/peers/192.168.80.1?node=lb1", "").Body.String()
	if strings.Contains(got+do(h, "GET", "/v1/bgp/peers", "").Body.String(), "hush") {
		t.Fatalf("a reader sees the password: %s", got)
	}
	want, shown := decoded[map[string]any](t, []byte(fullPeerBody)), decoded[map[string]any](t, []byte(got))
	want["password"] = fsm.KeepPassword
	for key, v := range want {
		if shown[key] != v {
			t.Errorf("%s is %v, want %v", key, shown[key], v)
		}
	}
	// What GET answers can be sent back: the password stays.
	if w := do(h, "PUT", "/v1/bgp/peers/192.168.80.1", got); w.Code != 200 {
		t.Fatalf("sent back: %d %s", w.Code, w.Body)
	}
	if p, _ := b.State().BGPPeer(netip.MustParseAddr("192.168.80.1"), "lb1"); p.Password != "hush" {
		t.Errorf("peer %+v", p)
	}
}

func TestBGPWritesAnswerWithTheSessionsTheyTouch(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	reset := func(why string) string {
		return `{"peer":"192.168.80.1","node":"lb1","change":"reset","why":"` + why + `"`
	}
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		has                      string
		changes                  bool
	}{
		{"dry run of a new peer", "PUT", "/v1/bgp/peers/192.168.80.1?dry_run=true", `{"as":65101}`, 200, `{"index":0,"dry_run":true,"sessions":[{"peer":"192.168.80.1","node":"lb1","change":"added"},`, false},
		{"refused dry run", "PUT", "/v1/bgp/peers/fe80::1?dry_run=true", `{"as":65101}`, 422, "link-local", false},
		{"new peer", "PUT", "/v1/bgp/peers/192.168.80.1", `{"as":65101}`, 200, `"dry_run":false,"sessions":[{"peer":"192.168.80.1","node":"lb1","change":"added"},`, true},
		{"dry run of a change", "PUT", "/v1/bgp/peers/192.168.80.1?dry_run=true", `{"as":65101,"hold":"30s"}`, 200, reset("hold time 9s -> 30s, keepalive 3s -> 10s"), false},
		{"no session is touched", "PUT", "/v1/bgp/peers/192.168.80.1", `{"as":65101,"max_prefixes":9}`, 200, `"sessions":[]`, true},
		{"dry run of settings", "PUT", "/v1/bgp?dry_run=true", `{"as":65010}`, 200, reset("own AS 64512 -> 65010"), false},
		{"passive and nobody listens", "PUT", "/v1/bgp/peers/192.168.80.1?dry_run=true", `{"as":65101,"passive":true}`, 200, `passive off -> on`, false},
		{"dry run of a removal", "DELETE", "/v1/bgp/peers/192.168.80.1?dry_run=true", "", 200, `{"peer":"192.168.80.1","node":"lb3","change":"removed"}`, false},
		{"another node's entry", "DELETE", "/v1/bgp/peers/192.168.80.1?node=lb1", "", 404, "bgp peer list", false},
		{"removal", "DELETE", "/v1/bgp/peers/192.168.80.1", "", 200, `"change":"removed"`, true},
		{"two addresses", "PUT", "/v1/bgp/peers/192.168.80.1", `{"address":"192.168.80.2","as":65101}`, 422, "make them the same", false},
		{"two nodes", "PUT", "/v1/bgp/peers/192.168.80.1?node=lb1", `{"node":"lb2","as":65101}`, 422, "make them the same", false},
		{"unknown key", "PUT", "/v1/bgp/peers/192.168.80.1", `{"sa":1}`, 422, "sa", false},
		{"unknown peer", "GET", "/v1/bgp/peers/192.168.80.9", "", 404, "192.168.80.9", false},
	} {
		before := b.State()
		w := do(h, c.method, c.path, c.body)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.has) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		after := b.State()
		if changed := len(fsm.ConfigChanges(before, after)) > 0; changed != c.changes {
			t.Errorf("%s: changed %v", c.name, changed)
		}
	}
}

func TestPeersAreListedWithTheSessionsOfTheNodeThatAnswers(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for path, body := range map[string]string{
		"192.168.80.1": `{"as":1}`, "192.168.80.2": `{"as":2}`, "192.168.80.1?node=lb2": `{"as":3}`,
	} {
		if w := do(h, "PUT", "/v1/bgp/peers/"+path, body); w.Code != 200 {
			t.Fatalf("got %d %s", w.Code, w.Body)
		}
	}
	b.runtime = func(st *Status) {
		st.BGP = []BGPPeer{{Peer: "192.168.80.1", Node: "lb1", AS: 1, State: BGPEstablished, Received: 4}}
	}
	list := decoded[[]BGPPeerStatus](t, do(h, "GET", "/v1/bgp/peers", "").Body.Bytes())
	if len(list) != 3 || list[0].Session == nil || list[0].Session.Received != 4 || list[1].Session != nil || list[1].Node != "lb2" || list[2].Session != nil {
		t.Errorf("%+v", list)
	}
}

func TestRoutesNameTheVIPsTheyLeadTo(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	route := func(prefix string) BGPRoute {
		return BGPRoute{Peer: "192.168.80.1", Prefix: netip.MustParsePrefix(prefix), MED: 10, Communities: []fsm.Community{"65000:1:2"}}
	}
	b.routes = map[BGPDirection][]BGPRoute{
		BGPAdvertised: {route("192.168.80.200/32"), route("192.168.80.0/24")}, BGPReceived: {route("10.0.0.0/8")},
	}
	got := decoded[[]BGPRoute](t, do(h, "GET", "/v1/bgp/routes", "").Body.Bytes())
	if len(got) != 2 || got[0].VIP != netip.MustParseAddr("192.168.80.200") || got[0].Instance != "default" || got[1].VIP.IsValid() || got[0].ASPath == nil {
		t.Errorf("%+v", got)
	}
	if got := do(h, "GET", "/v1/bgp/routes?direction=received", "").Body.String(); !strings.Contains(got, `"prefix":"10.0.0.0/8","med":10,"local_pref":0,"as_path":[],"communities":["65000:1:2"],"best":false`) {
		t.Error(got)
	}
	if w := do(h, "GET", "/v1/bgp/routes?direction=up", ""); w.Code != 422 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestInstanceSettingsAreTakenShownAndKept(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for _, c := range []struct{ body, want string }{
		{`{"priorities":{"lb2":1}}`, `"kind":"backup","announce_policy":"ranked"`},
		{`{"kind":"backup","communities":["65000:007"],"as_prepend":true}`, `"announce_policy":"ranked","as_prepend":true,"communities":["65000:7"]`},
		{`{"priorities":{"lb2":1}}`, `"as_prepend":true,"communities":["65000:7"]`}, // settings stay
		{`{"communities":[]}`, `"kind":"backup","announce_policy":"ranked","master"`},
		{`{"kind":"ecmp"}`, `"kind":"ecmp","master"`},
	} {
		if w := do(h, "PUT", "/v1/instances/blue", c.body); w.Code != 200 {
			t.Fatalf("%s: %d %s", c.body, w.Code, w.Body)
		}
		got := do(h, "GET", "/v1/instances/blue", "").Body.String()
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", c.body, got, c.want)
		}
		if w := do(h, "PUT", "/v1/instances/blue", got); w.Code != 200 {
			t.Errorf("sent back: %d %s", w.Code, w.Body)
		}
		if again := do(h, "GET", "/v1/instances/blue", "").Body.String(); !strings.Contains(again, c.want) {
			t.Errorf("sent back: %s", again)
		}
	}
	// A service of an active-active instance brings an address that fits.
	if w := do(h, "PUT", "/v1/services/web2?create=true&instance=blue", `{"vip":"192.168.80.209","port":80}`); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	if v, _ := b.State().VIP(netip.MustParseAddr("192.168.80.209")); v.Announce != fsm.AnnounceBGP {
		t.Errorf("vip %+v", v)
	}
}

// Members of an older version have to be able to read what does not need a newer one.
func TestDefaultSettingsOfAnInstanceAreNotWritten(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	if w := do(h, "PUT", "/v1/instances/default", do(h, "GET", "/v1/instances/default", "").Body.String()); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	s := &server{Config: Config{Backend: b}}
	for _, c := range []struct {
		in   InstanceSettings
		want int
	}{
		{InstanceSettings{}, 2},
		{InstanceSettings{Kind: fsm.InstanceBackup, AnnouncePolicy: fsm.PolicyRanked}, 2},
		{InstanceSettings{ASPrepend: true}, 5},
	} {
		if got := fsm.VersionOf(s.instanceCommand(t.Context(), "default", InstanceRequest{InstanceSettings: c.in})); got != c.want {
			t.Errorf("%+v is version %d, want %d", c.in, got, c.want)
		}
	}
	if _, err := b.Propose(t.Context(), fsm.PutInstance{Name: "default", ASPrepend: true}); err != nil {
		t.Fatal(err)
	}
	if cmd := s.instanceCommand(t.Context(), "default", InstanceRequest{InstanceSettings: InstanceSettings{Kind: fsm.InstanceBackup}}); fsm.VersionOf(cmd) != 5 {
		t.Errorf("taking settings back: %+v", cmd)
	}
}
