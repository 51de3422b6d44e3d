package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"pontoon/fsm"
)

const newService = `{"vip":"192.168.80.201","port":80,"endpoints":[{"address":"10.2.0.2:8080"}]}`

// blue adds an instance and the VIP 192.168.80.202 in it, with settings of its own.
func blue(t *testing.T, b *fakeBackend) {
	t.Helper()
	for _, c := range []fsm.Command{
		fsm.PutInstance{Name: "blue"},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("192.168.80.202"), Instance: "blue", Interface: "eth9", Announce: fsm.AnnounceNone}},
	} {
		if _, err := b.Propose(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestServiceBringsItsVIP(t *testing.T) {
	for _, c := range []struct {
		name, query, body string
		status            int
		has               string
		instance          string // of 192.168.80.201 afterwards, "" for none
	}{
		{"into default", "?create=true", newService, 200, `"vip":{"address":"192.168.80.201","instance":"default"`, "default"},
		{"into another", "?create=true&instance=blue", newService, 200, `"instance":"blue"`, "blue"},
		{"by the body", "?create=true", `{"instance":"blue",` + newService[1:], 200, `"instance":"blue"`, "blue"},
		{"two instances", "?create=true&instance=default", `{"instance":"blue",` + newService[1:], 422, "make them the same", ""},
		{"an unknown instance", "?create=true&instance=green", newService, 422, `instance \"green\" does not exist`, ""},
		{"not without create", "?instance=blue", newService, 422, "pontoon vip create", ""},
		{"not for a wrong service", "?create=true", strings.Replace(newService, "80,", "0,", 1), 422, "body.port", ""},
		{"not on a node's address", "?create=true", strings.Replace(newService, ".201", ".12", 1), 409, "is the address of node lb2", ""},
		{"no address at all", "?create=true", `{"port":0}`, 422, "body.vip", ""},
		{
			"in another instance", "?create=true&instance=default", strings.Replace(newService, ".201", ".202", 1), 409,
			"`pontoon vip create 192.168.80.202 --instance default --interface eth9 --announce none` moves it", "",
		},
		{"in another instance, without create", "?instance=default", strings.Replace(newService, ".201", ".202", 1), 409, `"code":"in_use"`, ""},
		{"in the same instance", "?instance=blue", strings.Replace(newService, ".201", ".202", 1), 200, `"index":`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, o := world(t)
			blue(t, b)
			w := do(handlerAt(t, b, o, AccessFull), "PUT", "/v1/services/new"+c.query, c.body)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.has) {
				t.Errorf("got %d %s\nwant %d with %s", w.Code, w.Body, c.status, c.has)
			}
			v, _ := b.State().VIP(netip.MustParseAddr("192.168.80.201"))
			if v.Instance != c.instance {
				t.Errorf("the vip is in %q, want %q", v.Instance, c.instance)
			}
			_, made := b.State().Service("new")
			if made != (w.Code == http.StatusOK) {
				t.Errorf("status %d, and the service exists: %v", w.Code, made)
			}
		})
	}
}

func TestCreatedVIPIsNamedOnlyWhenItWasCreated(t *testing.T) {
	b, o := world(t)
	w := do(handlerAt(t, b, o, AccessFull), "PUT", "/v1/services/api?create=true", `{"vip":"192.168.80.200","port":81}`)
	if w.Code != 200 || strings.Contains(w.Body.String(), "vip") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

// laggingBackend shows an old state until something is proposed through it.
type laggingBackend struct {
	*fakeBackend
	old *fsm.State
}

func (b *laggingBackend) State() *fsm.State {
	if b.old != nil {
		return b.old
	}
	return b.fakeBackend.State()
}

func (b *laggingBackend) Propose(ctx context.Context, c fsm.Command) (uint64, error) {
	b.old = nil
	return b.fakeBackend.Propose(ctx, c)
}

func TestCreateOnALaggingNodeMovesNoVIP(t *testing.T) {
	b, o := world(t)
	lagging := &laggingBackend{fakeBackend: b, old: b.State()}
	blue(t, b)
	h, err := NewHandler(Config{Backend: lagging, Ops: o, Access: Access{Level: AccessFull}})
	if err != nil {
		t.Fatal(err)
	}
	w := do(h, "PUT", "/v1/services/new?create=true", strings.Replace(newService, ".201", ".202", 1))
	if w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	v, _ := b.State().VIP(netip.MustParseAddr("192.168.80.202"))
	if v.Instance != "blue" || v.Interface != "eth9" || v.Announce != fsm.AnnounceNone {
		t.Errorf("the vip is now %+v", v)
	}
}

func TestServicesSayTheirInstance(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for path, at := range map[string]string{"/v1/services": "[0]", "/v1/services/web": ""} {
		var got any
		if err := json.Unmarshal(do(h, "GET", path, "").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if at != "" {
			got = got.([]any)[0]
		}
		if in := got.(map[string]any)["instance"]; in != "default" {
			t.Errorf("%s: instance %v, want default", path, in)
		}
	}
}
