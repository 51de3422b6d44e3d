package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// withHeader is do with one more header.
func withHeader(h http.Handler, method, path, body, key, value string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(key, value)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// What one reads has an ETag, under which it can be written back for as long as nobody else has changed it.
func TestAWriteUnderAnETagIsRefusedOnceItIsOld(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	if w := do(h, "PUT", "/v1/bgp/peers/192.168.80.1", `{"as":65101}`); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	if w := do(h, "PUT", "/v1/pools/web", `{"cidrs":["10.9.0.0/24"]}`); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	for path, bodies := range map[string][2]string{
		"/v1/pools/web":              {`{"cidrs":["10.9.0.0/24","10.9.1.0/24"]}`, `{"cidrs":["10.9.0.0/24"],"default":true}`},
		"/v1/bgp":                    {`{"as":65010,"port":179}`, `{"as":65011,"port":179}`},
		"/v1/bgp/peers/192.168.80.1": {`{"as":65102}`, `{"as":65103}`},
		"/v1/instances/default":      {`{"as_prepend":true}`, `{"announce_policy":"master-only"}`},
	} {
		read := do(h, "GET", path, "")
		tag := read.Header().Get("ETag")
		if !strings.HasPrefix(tag, `"`) || len(tag) < 10 || do(h, "GET", path, "").Header().Get("ETag") != tag {
			t.Fatalf("%s: ETag %s", path, tag)
		}
		if w := withHeader(h, "PUT", path, bodies[0], "If-Match", tag); w.Code != 200 {
			t.Errorf("%s, first: %d %s", path, w.Code, w.Body)
		}
		w := withHeader(h, "PUT", path, bodies[1], "If-Match", tag)
		if w.Code != http.StatusPreconditionFailed || !strings.Contains(w.Body.String(), `"changed"`) || !strings.Contains(w.Body.String(), "somebody else") {
			t.Errorf("%s, second: %d %s", path, w.Code, w.Body)
		}
		if w := withHeader(h, "PUT", path, bodies[1], "If-None-Match", "*"); w.Code != http.StatusPreconditionFailed {
			t.Errorf("%s, as if new: %d %s", path, w.Code, w.Body)
		}
		if w := do(h, "PUT", path, bodies[1]); w.Code != 200 {
			t.Errorf("%s, without a condition: %d %s", path, w.Code, w.Body)
		}
	}
	if w := withHeader(h, "PUT", "/v1/bgp/peers/192.168.80.2", `{"as":65101}`, "If-None-Match", "*"); w.Code != 200 {
		t.Errorf("a new peer: %d %s", w.Code, w.Body)
	}
	for _, bad := range []string{"*", "W/\"x\"", `"a", "b"`, "x"} {
		if w := withHeader(h, "PUT", "/v1/bgp", `{"as":65010,"port":179}`, "If-Match", bad); w.Code != http.StatusUnprocessableEntity {
			t.Errorf("If-Match %s: %d %s", bad, w.Code, w.Body)
		}
	}
}

// The ETag of a service is of what is configured, not of what passes.
func TestAServiceHasAnETag(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	name := b.State().Services()[0].Name
	path := "/v1/services/" + name
	tag := do(h, "GET", path, "").Header().Get("ETag")
	body := do(h, "GET", path, "").Body.String()
	if w := withHeader(h, "PUT", path, body, "If-Match", tag); w.Code != 200 {
		t.Fatalf("sent back: %d %s", w.Code, w.Body)
	}
	if again := do(h, "GET", path, "").Header().Get("ETag"); again != tag {
		t.Errorf("%s, then %s, and nothing was changed", tag, again)
	}
	if w := withHeader(h, "PUT", path, body, "If-Match", `"another"`); w.Code != http.StatusPreconditionFailed {
		t.Errorf("under another: %d %s", w.Code, w.Body)
	}
}
