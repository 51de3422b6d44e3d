package web

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pontoon/fsm"
)

func poolWorld(t *testing.T) (*fakeBackend, func(method, path, body string, want int) string) {
	t.Helper()
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	return b, func(method, path, body string, want int) string {
		t.Helper()
		w := do(h, method, path, body)
		if w.Code != want {
			t.Fatalf("%s %s %s: %d %s, want %d", method, path, body, w.Code, w.Body, want)
		}
		return w.Body.String()
	}
}

func TestPoolIsWrittenShownAndSentBack(t *testing.T) {
	b, ask := poolWorld(t)
	if got := ask("GET", "/v1/pools", "", 200); strings.TrimSpace(got) != "[]" {
		t.Errorf("no pools are %s", got)
	}
	ask("PUT", "/v1/pools/web", `{"cidrs":["10.9.0.0/29"],"ranges":["10.9.1.1-10.9.1.3"],"default":true,"reservations":[{"address":"10.9.0.2"}]}`, 200)
	ask("PUT", "/v1/reservations/10.9.0.3", `{"service":"late"}`, 200)
	ask("PUT", "/v1/services/shop?create=true", `{"vip":"auto:web","port":443,"share":"shop"}`, 200)
	before := ask("GET", "/v1/pools/web", "", 200)
	p := decoded[PoolStatus](t, []byte(before))
	if p.Size != 9 || p.Used != 1 || p.Reserved != 2 || p.Free != 6 || p.Instance != "default" || p.Announce != fsm.AnnounceL2 ||
		len(p.Allocations) != 1 || p.Allocations[0].Address.String() != "10.9.0.1" || p.Allocations[0].Share != "shop" ||
		!slices.Equal(p.Allocations[0].Services, []string{"shop"}) {
		t.Errorf("%+v", p)
	}
	ask("PUT", "/v1/pools/web", before, 200)
	if after := ask("GET", "/v1/pools/web", "", 200); after != before {
		t.Errorf("what was read and sent back became %s, was %s", after, before)
	}
	// Without the key the reservations stay, with an empty one they go.
	ask("PUT", "/v1/pools/web", `{"name":"web","cidrs":["10.9.0.0/29"],"ranges":["10.9.1.1-10.9.1.3"]}`, 200)
	if p, _ := b.State().Pool("web"); len(p.Reservations) != 2 || p.Default {
		t.Errorf("%+v", p)
	}
	ask("DELETE", "/v1/reservations/10.9.0.3", "", 200)
	ask("PUT", "/v1/pools/web", `{"cidrs":["10.9.0.0/29"],"reservations":[]}`, 200)
	if p, _ := b.State().Pool("web"); len(p.Reservations) != 0 {
		t.Errorf("%+v", p)
	}
	ask("DELETE", "/v1/pools/web", "", 409)
	ask("DELETE", "/v1/services/shop", "", 200)
	if len(b.State().VIPs()) != 1 {
		t.Errorf("vips %+v", b.State().VIPs())
	}
	ask("DELETE", "/v1/pools/web", "", 200)
	ask("GET", "/v1/pools/web", "", 404)
	ask("DELETE", "/v1/pools/web", "", 404)
}

func TestPoolRefusalsSayWhatToDo(t *testing.T) {
	_, ask := poolWorld(t)
	for _, r := range []struct {
		method, path, body string
		code               int
		words              string
	}{
		{"PUT", "/v1/pools/web", `{"cidrs":["192.168.80.0/24"]}`, 409, "192.168.80.11 is the address of node lb1"},
		{"PUT", "/v1/pools/web", `{"cidrs":["172.16.9.0/24"]}`, 409, "172.16.9.1 is an address of eth9 on lb1; 172.16.9.2 is an address of eth9 on lb2"},
		{"PUT", "/v1/pools/web", `{"cidrs":["172.16.8.0/24"]}`, 409, "172.16.8.0/28 is routed to 172.16.9.9 on lb1, lb2"},
		{"PUT", "/v1/pools/web", `{"cidrs":["10.9.0.0"]}`, 422, "10.9.0.0"},
		{"PUT", "/v1/pools/web", `{"cidrs":[""]}`, 422, "no prefix"},
		{"PUT", "/v1/pools/web", `{"ranges":["10.9.0.9-10.9.0.1"]}`, 422, "ends before it begins"},
		{"PUT", "/v1/pools/web", `{"name":"other","cidrs":["10.9.0.0/24"]}`, 422, "make them the same"},
		{"PUT", "/v1/reservations/10.9.0.3", `{}`, 404, "none that a pool hands out"},
		{"PUT", "/v1/reservations/10.9.0.3", `{"address":"10.9.0.4"}`, 422, "make them the same"},
		{"DELETE", "/v1/reservations/10.9.0.3", "", 404, "not reserved"},
		{"PUT", "/v1/services/shop?create=true", `{"vip":"auto","port":1}`, 422, "there is none"},
		{"PUT", "/v1/services/shop?create=true", `{"vip":"192.168.80.200","port":1,"share":"x"}`, 422, "goes with an address from a pool"},
		{"PUT", "/v1/services/shop?create=true", `{"vip":"auto:","port":1}`, 422, "auto:"},
	} {
		if got := ask(r.method, r.path, r.body, r.code); !strings.Contains(got, r.words) {
			t.Errorf("%s %s %s: %s does not say %q", r.method, r.path, r.body, got, r.words)
		}
	}
	ask("PUT", "/v1/pools/routed", `{"cidrs":["172.16.7.0/24"]}`, 200) // part of what is routed as a whole
	ask("DELETE", "/v1/pools/routed", "", 200)
	ask("PUT", "/v1/pools/one", `{"ranges":["10.9.0.1"]}`, 200)
	ask("PUT", "/v1/services/a?create=true", `{"vip":"auto:one","port":1}`, 200)
	if got := ask("PUT", "/v1/services/b?create=true", `{"vip":"auto","port":1}`, 409); !strings.Contains(got, "pool one hands out 1") {
		t.Error(got)
	}
}

// What cannot be known is said, and what is in use already, too.
func TestAPoolIsWrittenWithNotes(t *testing.T) {
	_, ask := poolWorld(t)
	ask("PUT", "/v1/services/here?create=true", `{"vip":"10.9.0.2","port":1}`, 200)
	notes := func(body string) []string {
		return decoded[PoolWritten](t, []byte(ask("PUT", "/v1/pools/web", body, 200))).Notes
	}
	got := notes(`{"cidrs":["10.9.0.0/29"]}`)
	if len(got) != 2 || !strings.Contains(got[0], "lb3 could not be asked for its addresses and routes (it is down)") ||
		!strings.Contains(got[1], "10.9.0.2 is a virtual address made by hand (here)") {
		t.Errorf("%q", got)
	}
	if got := notes(`{"cidrs":["10.9.0.0/30"]}`); len(got) != 0 {
		t.Errorf("of a pool that gets smaller: %q", got)
	}
	p := decoded[PoolStatus](t, []byte(ask("GET", "/v1/pools/web", "", 200)))
	if len(p.Others) != 1 || !slices.Equal(p.Others[0].Services, []string{"here"}) || p.Used != 1 || p.Free != 1 {
		t.Errorf("%+v", p)
	}
}

func TestAServiceIsToldItsAddress(t *testing.T) {
	b, ask := poolWorld(t)
	ask("PUT", "/v1/instances/blue", `{}`, 200)
	ask("PUT", "/v1/pools/web", `{"ranges":["10.9.0.1-10.9.0.9"],"instance":"blue"}`, 200)
	w := decoded[ServiceWritten](t, []byte(ask("PUT", "/v1/services/a?create=true", `{"vip":"auto","port":1}`, 200)))
	if w.VIP == nil || w.VIP.Address.String() != "10.9.0.1" || w.VIP.Instance != "blue" || w.VIP.Pool != "web" {
		t.Errorf("%+v", w.VIP)
	}
	// What GET says of a service has the address, and can be sent back.
	body := ask("GET", "/v1/services/a", "", 200)
	ask("PUT", "/v1/services/a", body, 200)
	ask("PUT", "/v1/services/a", `{"vip":"auto","port":2}`, 200)
	if svc, _ := b.State().Service("a"); svc.VIP.String() != "10.9.0.1" || svc.Port != 2 {
		t.Errorf("%+v", svc)
	}
	ask("PUT", "/v1/services/b?create=true&instance=blue", `{"vip":"auto","port":1}`, 200)
	if got := ask("PUT", "/v1/services/c?create=true&instance=default", `{"vip":"auto","port":1}`, 409); !strings.Contains(got, "pool web is for instance blue") {
		t.Error(got)
	}
	// A VIP of a pool that is written by hand is the pool's still.
	vip := ask("GET", "/v1/vips/10.9.0.1", "", 200)
	if !strings.Contains(vip, `"pool":"web"`) {
		t.Error(vip)
	}
	ask("PUT", "/v1/vips/10.9.0.1", vip, 200)
	if v, _ := b.State().VIP(ap("10.9.0.1:1").Addr()); v.Pool != "web" {
		t.Errorf("%+v", v)
	}
}

func TestNewInstancesAreSpreadAndRebalanceSaysWhatToMove(t *testing.T) {
	b, ask := poolWorld(t)
	for i := range 5 {
		ask("PUT", fmt.Sprintf("/v1/instances/i%d", i), `{}`, 200)
	}
	count := map[fsm.NodeID]int{}
	for _, i := range decoded[[]InstanceStatus](t, []byte(ask("GET", "/v1/instances", "", 200))) {
		count[i.Master]++
		if want := map[bool]int{true: 1}[i.Name == "default"]; i.Services != want || len(i.VIPs) != want {
			t.Errorf("%+v", i)
		}
	}
	if count["lb1"] != 2 || count["lb2"] != 2 || count["lb3"] != 2 {
		t.Errorf("masters %v", count)
	}
	if got := ask("GET", "/v1/rebalance", "", 200); strings.TrimSpace(got) != "[]" {
		t.Error(got)
	}
	for _, c := range []fsm.Command{
		fsm.NodeVerdict{Node: "lb3"}, fsm.NodeVerdict{Node: "lb3", Alive: true}, fsm.NodeReport{Node: "lb3", Ready: true, LinksUp: true, InSync: true},
	} {
		if _, err := b.Propose(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	moves := decoded[[]fsm.Move](t, []byte(ask("GET", "/v1/rebalance", "", 200)))
	if len(moves) != 2 || moves[0].To != "lb3" || moves[0].Why == "" {
		t.Errorf("%+v", moves)
	}
	// An instance that is there is put in a form all members read, old ones too.
	at := b.State().Index()
	ask("PUT", "/v1/instances/i0", `{"priorities":{"lb1":1}}`, 200)
	if b.State().Index() != at+1 {
		t.Error("not written")
	}
}
