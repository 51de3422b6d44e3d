package web

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
)

func TestAccessLevelsLetInWhomTheyShould(t *testing.T) {
	bearer := []string{"Authorization", "Bearer " + testToken}
	basic := []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+testToken))}
	wrong := []string{"Authorization", "Bearer " + testToken + "x"}
	empty := []string{"Authorization", "Bearer "}
	foreign := []string{"Authorization", "Bearer " + testToken, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}
	for _, c := range []struct {
		name   string
		level  AccessLevel
		method string
		path   string
		header []string
		want   int
	}{
		{"full reads", AccessFull, "GET", "/v1/status", nil, 200},
		{"full writes", AccessFull, "DELETE", "/v1/services/web", nil, 200},
		{"full forms clusters", AccessFull, "POST", "/v1/cluster/init", nil, 200},
		{"full takes any host", AccessFull, "GET", "/v1/status", []string{"Host", "pontoon"}, 200},

		{"local reads", AccessLocal, "GET", "/v1/status", nil, 200},
		{"local reads the page", AccessLocal, "GET", "/", nil, 200},
		{"local reads by name", AccessLocal, "GET", "/v1/status", []string{"Host", "localhost:7480"}, 200},
		{"local reads by IPv6", AccessLocal, "GET", "/v1/status", []string{"Host", "[::1]:7480"}, 200},
		{"local refuses a rebound name", AccessLocal, "GET", "/v1/status", []string{"Host", "evil.example:7480"}, 421},
		{"local refuses a tricky name", AccessLocal, "GET", "/v1/status", []string{"Host", "127.0.0.1.evil.example"}, 421},
		{"local refuses no name", AccessLocal, "GET", "/v1/status", []string{"Host", ""}, 421},
		{"local refuses another address", AccessLocal, "GET", "/", []string{"Host", "192.168.80.11:7480"}, 421},
		{"local writes with the token", AccessLocal, "DELETE", "/v1/services/web", bearer, 200},
		{"local writes with basic", AccessLocal, "DELETE", "/v1/services/web", basic, 200},
		{"local writes not without", AccessLocal, "DELETE", "/v1/services/web", nil, 401},
		{"local writes not with a wrong one", AccessLocal, "DELETE", "/v1/services/web", wrong, 401},
		{"local writes not with an empty one", AccessLocal, "DELETE", "/v1/services/web", empty, 401},
		{"local writes not for a foreign page", AccessLocal, "DELETE", "/v1/services/web", foreign, 403},
		{"local forms no clusters", AccessLocal, "POST", "/v1/cluster/init", bearer, 403},

		{"remote lives without", AccessRemote, "GET", "/healthz", nil, 200},
		{"remote is ready without", AccessRemote, "GET", "/readyz", nil, 200},
		{"remote reads with bearer", AccessRemote, "GET", "/v1/status", bearer, 200},
		{"remote reads with basic", AccessRemote, "GET", "/", basic, 200},
		{"remote reads not without", AccessRemote, "GET", "/v1/status", nil, 401},
		{"remote shows no page without", AccessRemote, "GET", "/", nil, 401},
		{"remote shows no metrics without", AccessRemote, "GET", "/metrics", nil, 401},
		{"remote shows no files without", AccessRemote, "GET", "/static/app.js", nil, 401},
		{"remote writes with the token", AccessRemote, "DELETE", "/v1/services/web", bearer, 200},
		{"remote writes not without", AccessRemote, "DELETE", "/v1/services/web", nil, 401},
		{"remote writes not to healthz", AccessRemote, "POST", "/healthz", nil, 401},
		{"remote forms no clusters", AccessRemote, "POST", "/v1/cluster/leave", bearer, 403},
		{"remote rebuilds no clusters", AccessRemote, "POST", "/v1/cluster/recover", bearer, 403},
		{"remote writes not for a foreign page", AccessRemote, "DELETE", "/v1/services/web", foreign, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, o := world(t)
			w := do(handlerAt(t, b, o, c.level), c.method, c.path, "", c.header...)
			if w.Code != c.want {
				t.Fatalf("got %d %s, want %d", w.Code, w.Body, c.want)
			}
			if c.want >= 400 {
				checkProblem(t, c.want, w.Header().Get("Content-Type"), w.Body.Bytes())
				if len(o.asked) > 0 || len(b.State().Services()) != 1 {
					t.Error("a refused request did something")
				}
			}
			if asks := strings.Join(w.Header().Values("WWW-Authenticate"), ", "); (c.want == 401) != strings.Contains(asks, "Basic realm=") {
				t.Errorf("WWW-Authenticate %q on %d", asks, c.want)
			}
		})
	}
}

func TestLocalWithoutATokenIsReadOnly(t *testing.T) {
	b, o := world(t)
	h, err := NewHandler(Config{Backend: b, Ops: o, Access: Access{Level: AccessLocal}})
	if err != nil {
		t.Fatal(err)
	}
	if w := do(h, "GET", "/v1/status", ""); w.Code != 200 {
		t.Errorf("read: %d", w.Code)
	}
	for _, auth := range []string{"", "Bearer ", "Basic Og=="} {
		if w := do(h, "DELETE", "/v1/services/web", "", "Authorization", auth); w.Code != 403 {
			t.Errorf("write with %q: %d, want 403", auth, w.Code)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	b, o := world(t)
	for name, cfg := range map[string]Config{
		"no backend":           {Ops: o, Access: Access{Level: AccessFull}},
		"no ops":               {Backend: b, Access: Access{Level: AccessFull}},
		"no level":             {Backend: b, Ops: o},
		"remote without token": {Backend: b, Ops: o, Access: Access{Level: AccessRemote}},
	} {
		if _, err := NewHandler(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEveryAnswerCarriesTheSecurityHeaders(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessLocal)
	for _, path := range []string{"/", "/v1/status", "/nowhere", "/static/app.js", "/metrics"} {
		got := do(h, "GET", path, "").Header()
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff",
			"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
		} {
			if !strings.HasPrefix(got.Get(name), want) {
				t.Errorf("%s: %s = %q", path, name, got.Get(name))
			}
		}
	}
}

func TestPageFilesAreAskedForAgainAndSentOnce(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessLocal)
	first := do(h, "GET", "/static/style.css", "")
	etag := first.Header().Get("ETag")
	if etag == "" || first.Header().Get("Cache-Control") != "no-cache" {
		t.Fatalf("headers %v", first.Header())
	}
	if again := do(h, "GET", "/static/style.css", "", "If-None-Match", etag); again.Code != http.StatusNotModified {
		t.Errorf("second time: %d", again.Code)
	}
}
