package web

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
)

const fullService = `{"vip":"2001:db8:80::200","port":8000,"port_end":8100,"protocol":"sctp","mode":"dsr","tunnel":"ipip","algorithm":"lc",
"affinity":"client-ip","affinity_timeout":"30m","idle_timeout":"20m","idle_reset":true,"on_remove":"keep","on_full":"reset",
"new_flow_rate":7,"drain_timeout":"10m","replicate":"established","replicate_min_age":"3s","endpoints":[{"address":"[2001:db8:77::21]:8000","weight":3}]}`

// endpointsOf asks the API for the endpoints of a service.
func endpointsOf(t *testing.T, b *fakeBackend, o *fakeOps, service string) []EndpointStatus {
	t.Helper()
	var svc ServiceStatus
	body := do(handlerAt(t, b, o, AccessFull), "GET", "/v1/services/"+service, "").Body.Bytes()
	if err := json.Unmarshal(body, &svc); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return svc.Endpoints
}

func TestEverySettingOfAServiceIsTakenAndShown(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	if w := do(h, "PUT", "/v1/services/media?create=true", fullService); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	got := do(h, "GET", "/v1/services/media", "").Body.String()
	var want, shown map[string]any
	for text, into := range map[string]*map[string]any{fullService: &want, got: &shown} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	delete(want, "endpoints")
	for key, v := range want {
		text, isText := v.(string)
		if d, err := time.ParseDuration(text); err == nil && isText {
			v = d.String()
		}
		if shown[key] != v {
			t.Errorf("%s is %v, want %v", key, shown[key], v)
		}
	}
	// What GET answers can be sent back.
	if w := do(h, "PUT", "/v1/services/media", got); w.Code != 200 {
		t.Fatalf("sent back: %d %s", w.Code, w.Body)
	}
	if again := do(h, "GET", "/v1/services/media", "").Body.String(); again != got {
		t.Errorf("was\n%s\nis\n%s", got, again)
	}
}

func TestDrainEndsByTheTimeoutOfTheRequestOrTheService(t *testing.T) {
	const at = "[2001:db8:77::21]:8000"
	for _, c := range []struct {
		name, query string
		status      int
		want        time.Duration // from now; 0 is never
	}{
		{"the service's", "", 200, 10 * time.Minute},
		{"the request's", "?timeout=90s", 200, 90 * time.Second},
		{"without end", "?timeout=0s", 200, 0},
		{"negative", "?timeout=-1s", 422, 0},
		{"too long", "?timeout=169h", 422, 0},
		{"no duration", "?timeout=90", 422, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, o := world(t)
			h := handlerAt(t, b, o, AccessFull)
			if w := do(h, "PUT", "/v1/services/media?create=true", fullService); w.Code != 200 {
				t.Fatalf("got %d %s", w.Code, w.Body)
			}
			before := time.Now()
			w := do(h, "POST", "/v1/services/media/endpoints/%5B2001:db8:77::21%5D:8000/drain"+c.query, "")
			if w.Code != c.status {
				t.Fatalf("got %d %s", w.Code, w.Body)
			}
			e := endpointsOf(t, b, o, "media")[0]
			switch {
			case c.status != 200:
				if e.Admin != fsm.AdminUp {
					t.Errorf("a refused drain left %+v", e)
				}
			case e.Address != netip.MustParseAddrPort(at) || e.Admin != fsm.AdminDrain || e.DrainUntil.IsZero() != (c.want == 0):
				t.Errorf("endpoint %+v", e)
			case c.want > 0:
				if in := e.DrainUntil.Sub(before); in < c.want-time.Millisecond || in > c.want+time.Minute {
					t.Errorf("ends in %s, want %s", in, c.want)
				}
			}
		})
	}
}

func TestAPutThatDrainsAnEndpointSaysWhenItEnds(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	put := func(body string) EndpointStatus {
		t.Helper()
		if w := do(h, "PUT", "/v1/services/media", body); w.Code != 200 {
			t.Fatalf("got %d %s", w.Code, w.Body)
		}
		return endpointsOf(t, b, o, "media")[0]
	}
	do(h, "PUT", "/v1/services/media?create=true", fullService)
	draining := strings.Replace(fullService, `"weight":3`, `"weight":3,"admin":"drain","drain_until":"2020-01-01T00:00:00Z"`, 1)
	first := put(draining)
	if in := time.Until(first.DrainUntil); in < 9*time.Minute || in > 10*time.Minute {
		t.Fatalf("the drain ends in %s, want 10m", in)
	}
	if again := put(strings.Replace(draining, "10m", "20m", 1)); !again.DrainUntil.Equal(first.DrainUntil) {
		t.Errorf("putting it again moved the end from %s to %s", first.DrainUntil, again.DrainUntil)
	}
	if up := put(fullService); up.Admin != fsm.AdminUp || !up.DrainUntil.IsZero() || up.ID != first.ID {
		t.Errorf("back up: %+v", up)
	}
}

func TestIPv6VIPsHaveAPath(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for _, c := range []struct{ method, path, body, has string }{
		{"PUT", "/v1/vips/2001:db8::5", `{"kind":"snat"}`, `"index":`},
		{"GET", "/v1/vips/2001:db8::5", "", `"kind":"snat"`},
		{"GET", "/v1/vips/2001%3Adb8%3A%3A5", "", `"address":"2001:db8::5"`},
		{"PUT", "/v1/services/x", `{"vip":"2001:db8::5","port":80}`, "is of kind snat: use one of kind service"},
		{"PUT", "/v1/vips/fe80::1", `{}`, "link-local"},
		{"DELETE", "/v1/vips/2001:db8::5", "", `"index":`},
	} {
		if w := do(h, c.method, c.path, c.body); !strings.Contains(w.Body.String(), c.has) {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
}
