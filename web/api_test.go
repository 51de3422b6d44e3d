package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
)

func TestEveryRouteAnswersAsWritten(t *testing.T) {
	const svc = `{"vip":"192.168.80.200","port":81,"protocol":"tcp","mode":"fullnat","algorithm":"rr","endpoints":[{"address":"10.2.0.2:8080"}]}`
	for _, c := range []struct {
		method, path, body string
		status             int
		has                string // in the answer
	}{
		{"GET", "/v1/status", "", 200, `"text":"3 of 3 nodes healthy, lb1 leads"`},
		{"GET", "/v1/nodes", "", 200, `"name":"lb2"`},
		{"GET", "/v1/bfd", "", 200, `[]`},
		{"GET", "/v1/nodes/lb3", "", 200, `"raft":"voter"`},
		{"GET", "/v1/nodes/lb9", "", 404, `node \"lb9\": not found`},
		{"POST", "/v1/nodes/lb1/drain", "", 200, `"index":`},
		{"POST", "/v1/nodes/lb1/resume", "", 200, `"index":`},
		{"POST", "/v1/nodes/lb9/drain", "", 404, "lb9"},
		{"DELETE", "/v1/nodes/lb2", "", 200, `"index":`},
		{"DELETE", "/v1/nodes/lb9?force=true", "", 404, "lb9"},
		{"DELETE", "/v1/nodes/lb2?force=maybe", "", 422, "query.force"},
		{"GET", "/v1/instances", "", 200, `"vips":["192.168.80.200"]`},
		{"GET", "/v1/instances/default", "", 200, `"master":"lb1"`},
		{"GET", "/v1/instances/x", "", 404, "not found"},
		{"PUT", "/v1/instances/b", `{"priorities":{"lb2":10}}`, 200, `"index":`},
		{"PUT", "/v1/instances/b", `{"name":"c"}`, 422, "make them the same"},
		{"DELETE", "/v1/instances/default", "", 422, "always exists"},
		{"POST", "/v1/instances/default/move", `{"to":"lb2"}`, 200, `"index":`},
		{"POST", "/v1/instances/default/move", `{"to":""}`, 422, "body.to"},
		{"POST", "/v1/instances/default/move", "", 400, "body is required"},
		{"GET", "/v1/vips", "", 200, `"kind":"service"`},
		{"GET", "/v1/vips/192.168.80.200", "", 200, `"announce":"l2"`},
		{"GET", "/v1/vips/192.168.80.201", "", 404, "not found"},
		{"GET", "/v1/vips/nonsense", "", 422, "path.address"},
		{"PUT", "/v1/vips/192.168.80.201", `{}`, 200, `"index":`},
		{"PUT", "/v1/vips/192.168.80.201", `{"address":"192.168.80.202"}`, 422, "make them the same"},
		{"PUT", "/v1/vips/127.0.0.1", `{}`, 422, `"code":"invalid"`},
		{"DELETE", "/v1/vips/192.168.80.200", "", 409, `"code":"in_use"`},
		{"GET", "/v1/services", "", 200, `"health":"up"`},
		{"GET", "/v1/services/web", "", 200, `"flows":8`},
		{"GET", "/v1/services/nil", "", 404, "not found"},
		{"PUT", "/v1/services/api", svc, 200, `"index":`},
		{"PUT", "/v1/services/web?create=true", svc, 409, `"code":"exists"`},
		{"PUT", "/v1/services/web", `{"name":"api"}`, 422, "make them the same"},
		{"DELETE", "/v1/services/web", "", 200, `"index":`},
		{"DELETE", "/v1/services/nil", "", 404, "nil"},
		{"POST", "/v1/services/web/endpoints/10.2.0.2:8080/drain", "", 200, `"index":`},
		{"POST", "/v1/services/web/endpoints/10.2.0.2:8080/resume", "", 200, `"index":`},
		{"POST", "/v1/services/web/endpoints/10.2.0.9:8080/drain", "", 404, "10.2.0.9:8080"},
		{"POST", "/v1/services/web/endpoints/10.2.0.2/drain", "", 422, "path.address"},
		{"GET", "/v1/flows", "", 200, `"client":"10.1.0.5:40001"`},
		{"GET", "/v1/flows?client=10.1.0.6", "", 200, `"client":"10.1.0.6:40002"`},
		{"GET", "/v1/flows?client=moon", "", 422, "prefix"},
		{"GET", "/v1/flows?limit=0", "", 422, "query.limit"},
		{"GET", "/v1/flows?colour=red", "", 422, "query.colour"},
		{"GET", "/v1/flows/count", "", 200, `"established":12`},
		{"DELETE", "/v1/flows?service=web", "", 200, `"flushed":2`},
		{"DELETE", "/v1/flows?service=nil", "", 404, "not found"},
		{"DELETE", "/v1/flows", "", 422, "query.service"},
		{"GET", "/v1/events", "", 200, "lb1 is master of default"},
		{"GET", "/v1/events?since=soon", "", 422, "since"},
		{"GET", "/v1/tokens", "", 200, `"id":"open1"`},
		{"POST", "/v1/tokens", `{"role":"witness","ttl":"30m"}`, 200, `"token":"new-token"`},
		{"POST", "/v1/tokens", `{}`, 200, `"token":"new-token"`},
		{"POST", "/v1/tokens", `{"role":"king"}`, 422, "lb or witness"},
		{"POST", "/v1/tokens", `{"ttl":"forever"}`, 422, "forever"},
		{"POST", "/v1/tokens", `{"ttl":"9999h"}`, 422, "at most"},
		{"DELETE", "/v1/tokens/open1", "", 200, `"index":`},
		{"DELETE", "/v1/tokens/nil", "", 404, "nil"},
		{"POST", "/v1/cluster/init", "", 200, `"join_command":"pontoon join`},
		{"POST", "/v1/cluster/join", `{"address":"10.0.0.1:7400","token":"tok"}`, 200, `"name":"lb2"`},
		{"POST", "/v1/cluster/join", `{"address":"10.0.0.1:7400"}`, 422, "token"},
		{"POST", "/v1/cluster/leave", `{}`, 200, `"steps":["handing over default","left the cluster"]`},
		{"POST", "/v1/cluster/recover", `{"fenced":["lb2","lb3"]}`, 200, `"steps":["looking for the others","rebuilding the group"]`},
		{"POST", "/v1/cluster/recover", `{"fenced":[]}`, 422, "fenced"},
		{"POST", "/v1/cluster/recover", `{}`, 422, "fenced"},
		{"GET", "/v1/openapi.json", "", 200, `"openapi":"3.1.0"`},
		{"GET", "/metrics", "", 200, "pontoon_test 0"},
		{"GET", "/healthz", "", 200, `"live":true`},
		{"GET", "/readyz", "", 200, `"reasons":[]`},
		{"GET", "/", "", 200, "3 of 3 nodes healthy, lb1 leads"},
		{"GET", "/static/app.js", "", 200, "import"},
		{"GET", "/static/style.css", "", 200, "prefers-color-scheme"},
		{"HEAD", "/v1/status", "", 200, ""},
		{"GET", "/nowhere", "", 404, "/v1/openapi.json"},
		{"GET", "/static/", "", 404, "nothing is at"},
		{"POST", "/v1/status", "", 405, "does not take POST"},
		{"PATCH", "/v1/services/web", "{}", 405, "does not take PATCH"},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			b, o := world(t)
			w := do(handlerAt(t, b, o, AccessFull), c.method, c.path, c.body)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.has) {
				t.Errorf("got %d %s\nwant %d with %s", w.Code, w.Body, c.status, c.has)
			}
			typ := w.Header().Get("Content-Type")
			if c.status >= 400 {
				checkProblem(t, w.Code, typ, w.Body.Bytes())
			} else if strings.HasPrefix(c.path, "/v1/") && !strings.Contains(typ, "json") {
				t.Errorf("content type %q, want JSON", typ)
			}
		})
	}
}

// checkProblem holds an answer against RFC 9457 and our own promise of one line.
func checkProblem(t *testing.T, status int, typ string, body []byte) {
	t.Helper()
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil {
		t.Fatalf("problem is not JSON: %v: %s", err, body)
	}
	switch {
	case typ != "application/problem+json":
		t.Errorf("content type %q, want application/problem+json", typ)
	case p.Status != status || p.Title != http.StatusText(status):
		t.Errorf("problem says %d %q, the answer %d", p.Status, p.Title, status)
	case p.Detail == "" || strings.Contains(p.Detail, "\n"):
		t.Errorf("detail %q, want one line", p.Detail)
	case p.Code == "":
		t.Error("no code")
	}
}

func TestErrorsOfTheBackendBecomeProblems(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{ErrNoCluster, 409, "no_cluster"},
		{fmt.Errorf("forward: %w", ErrNoLeader), 503, "no_leader"},
		{fmt.Errorf("x: %w", fsm.ErrNotFound), 404, "not_found"},
		{fmt.Errorf("x: %w", fsm.ErrExists), 409, "exists"},
		{fmt.Errorf("x: %w", fsm.ErrInUse), 409, "in_use"},
		{fmt.Errorf("x: %w", fsm.ErrInvalid), 422, "invalid"},
		{fmt.Errorf("x: %w", fsm.ErrNotEligible), 409, "not_eligible"},
		{fmt.Errorf("x: %w", fsm.ErrNodeDown), 409, "node_down"},
		{fmt.Errorf("x: %w", fsm.ErrTokenInvalid), 403, "token_invalid"},
		{fmt.Errorf("x: %w", fsm.ErrAlreadyInitialised), 409, "already_initialised"},
		{errors.New("disk is full\nand more"), 500, "internal"},
	} {
		t.Run(c.code, func(t *testing.T) {
			b, o := world(t)
			b.err = c.err
			h := handlerAt(t, b, o, AccessFull)
			w := do(h, "DELETE", "/v1/services/web", "")
			checkProblem(t, c.status, w.Header().Get("Content-Type"), w.Body.Bytes())
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != c.status || p.Code != c.code {
				t.Errorf("got %d %s, want %d %s", w.Code, w.Body, c.status, c.code)
			}
			if c.status == 503 && w.Header().Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if c.status != 500 && !errors.Is(p.Err(), errors.Unwrap(c.err)) && !errors.Is(p.Err(), c.err) {
				t.Errorf("Err() = %v does not match the sentinel", p.Err())
			}
		})
	}
}

func TestInNoClusterEverythingSaysSo(t *testing.T) {
	b, o := world(t)
	b.state = fsm.New()
	b.err = ErrNoCluster
	h := handlerAt(t, b, o, AccessFull)
	for _, path := range []string{"/v1/status", "/v1/nodes", "/v1/bfd", "/v1/instances", "/v1/instances/default", "/v1/vips", "/v1/services", "/v1/flows", "/v1/flows/count", "/v1/tokens"} {
		w := do(h, "GET", path, "")
		if w.Code != 409 || !strings.Contains(w.Body.String(), "pontoon init") {
			t.Errorf("GET %s: %d %s, want 409 naming the command", path, w.Code, w.Body)
		}
	}
	w := do(h, "GET", "/", "")
	for _, want := range []string{"This node is in no cluster", "pontoon init", "pontoon join"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("page does not say %q", want)
		}
	}
}

func TestBodiesAreStrictAndSayWhere(t *testing.T) {
	for _, c := range []struct {
		path, body string
		status     int
		where      []string
	}{
		{"/v1/services/api", `{"vpi":"192.168.80.200","port":"80"}`, 422, []string{"body.vpi", "body.port"}},
		{"/v1/services/api", `{"endpoints":[{"address":"10.2.0.2:8080","wieght":2}]}`, 422, []string{"body.endpoints[0].wieght"}},
		{"/v1/services/api", `{"port":70000}`, 422, []string{"body.port"}},
		{"/v1/services/api", `{"vip":"192.168.80.200","port":0,"protocol":"tcp","mode":"x","algorithm":"y"}`, 422, []string{"body.port", "body.mode", "body.algorithm"}},
		{"/v1/services/api", `{"vip":"moon"}`, 422, []string{"body.vip"}},
		{"/v1/services/api", `{"port":80`, 400, []string{"body"}},
		{"/v1/vips/192.168.80.201", `{"colour":"red"}`, 422, []string{"body.colour"}},
		{"/v1/instances/b", `{"prio":{}}`, 422, []string{"body.prio"}},
		{"/v1/instances/b", `[]`, 422, []string{"body"}},
	} {
		t.Run(c.body, func(t *testing.T) {
			b, o := world(t)
			before := b.State()
			w := do(handlerAt(t, b, o, AccessFull), "PUT", c.path, c.body)
			checkProblem(t, c.status, w.Header().Get("Content-Type"), w.Body.Bytes())
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
				t.Fatal(err)
			}
			for _, where := range c.where {
				if !slices.ContainsFunc(p.Errors, func(f ProblemField) bool { return f.Location == where }) {
					t.Errorf("nothing is said about %s: %s", where, w.Body)
				}
			}
			if len(b.State().Services()) != len(before.Services()) {
				t.Error("a refused request changed the state")
			}
		})
	}
}

func TestTooLargeABodyIsRefused(t *testing.T) {
	b, o := world(t)
	w := do(handlerAt(t, b, o, AccessFull), "PUT", "/v1/services/api", `{"name":"`+strings.Repeat("x", maxBody)+`"}`)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestWhatGetAnswersCanBePut(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for _, path := range []string{"/v1/services/web", "/v1/vips/192.168.80.200", "/v1/instances/default"} {
		before := do(h, "GET", path, "").Body.String()
		if w := do(h, "PUT", path, before); w.Code != 200 {
			t.Errorf("PUT %s: %d %s", path, w.Code, w.Body)
		}
		if after := do(h, "GET", path, "").Body.String(); after != before {
			t.Errorf("%s changed:\n%s\n%s", path, before, after)
		}
	}
}

func TestEndpointWeightZeroIsKeptAndAbsenceIsOne(t *testing.T) {
	b, o := world(t)
	body := `{"vip":"192.168.80.200","port":81,"endpoints":[{"address":"10.2.0.2:8080","weight":0},{"address":"10.2.0.3:8080"}]}`
	if w := do(handlerAt(t, b, o, AccessFull), "PUT", "/v1/services/api", body); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	svc, _ := b.State().Service("api")
	if len(svc.Endpoints) != 2 || svc.Endpoints[0].Weight != 0 || svc.Endpoints[1].Weight != 1 {
		t.Errorf("endpoints %+v, want weights 0 and 1", svc.Endpoints)
	}
}

func TestTokensNeverShowTheirHash(t *testing.T) {
	b, o := world(t)
	body := do(handlerAt(t, b, o, AccessFull), "GET", "/v1/tokens", "").Body.String()
	if strings.Contains(body, "hash") {
		t.Errorf("tokens show a hash: %s", body)
	}
}

func TestFlowsAreCutAtTheLimitAndSaySo(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for limit, status := range map[int]int{1: 200, MaxFlowLimit: 200, MaxFlowLimit + 1: 422} {
		if w := do(h, "GET", fmt.Sprintf("/v1/flows?limit=%d", limit), ""); w.Code != status {
			t.Errorf("limit %d: status %d, want %d", limit, w.Code, status)
		}
	}
	if do(h, "GET", "/v1/flows", ""); b.filter.Limit != DefaultFlowLimit+1 {
		t.Errorf("without a limit %d are asked for, want %d and one more", b.filter.Limit, DefaultFlowLimit)
	}
	w := do(h, "GET", "/v1/flows?limit=1&service=web", "")
	var got []Flow
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got) != 1 || w.Header().Get("Pontoon-Truncated") != "true" {
		t.Errorf("limit 1: %v %s %q", err, w.Body, w.Header().Get("Pontoon-Truncated"))
	}
	if b.filter.Service != "web" || b.filter.Limit != 2 {
		t.Errorf("asked the backend for %+v", b.filter)
	}
	w = do(h, "GET", "/v1/flows?limit=2", "")
	if w.Header().Get("Pontoon-Truncated") != "" {
		t.Error("a whole list claims to be cut")
	}
}

func TestFlowFilterMatchesClientsAsWritten(t *testing.T) {
	for _, c := range []struct {
		client string
		match  []string
		not    []string
	}{
		{"", []string{"10.1.0.5:1", "[fd00::1]:1"}, nil},
		{"10.1.0.5", []string{"10.1.0.5:1", "[::ffff:10.1.0.5]:2"}, []string{"10.1.0.6:1"}},
		{"10.1.0.5:7", []string{"10.1.0.5:7"}, []string{"10.1.0.5:8"}},
		{"10.1.0.9/24", []string{"10.1.0.5:7"}, []string{"10.1.1.5:8"}},
		{"fd00::1", []string{"[fd00::1]:1"}, []string{"[fd00::2]:1"}},
		{"[fd00::1]:5", []string{"[fd00::1]:5"}, []string{"[fd00::1]:1"}},
	} {
		var f FlowFilter
		if err := f.SetClient(c.client); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.match {
			if !f.Match("web", ap(s)) {
				t.Errorf("%q does not match %s", c.client, s)
			}
		}
		for _, s := range c.not {
			if f.Match("web", ap(s)) {
				t.Errorf("%q matches %s", c.client, s)
			}
		}
	}
	if (FlowFilter{Service: "a"}).Match("b", netip.AddrPort{}) {
		t.Error("service a matches b")
	}
}

func TestHealthEndpointsAnswer503WithReasons(t *testing.T) {
	b, o := world(t)
	b.health = Health{Live: true, Reasons: []string{"the data plane is not attached"}}
	h := handlerAt(t, b, o, AccessRemote)
	if w := do(h, "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("healthz: %d %s", w.Code, w.Body)
	}
	w := do(h, "GET", "/readyz", "")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "not attached") {
		t.Errorf("readyz: %d %s", w.Code, w.Body)
	}
}

func TestTokenDefaultsReachTheCluster(t *testing.T) {
	b, o := world(t)
	do(handlerAt(t, b, o, AccessFull), "POST", "/v1/tokens", `{}`)
	if want := "token lb " + time.Hour.String(); len(o.asked) != 1 || o.asked[0] != want {
		t.Errorf("asked %q, want %q", o.asked, want)
	}
}

func TestAFailedLeaveSaysWhy(t *testing.T) {
	b, o := world(t)
	o.err = fmt.Errorf("lb1 is the last voter: use --force: %w", fsm.ErrInUse)
	h := handlerAt(t, b, o, AccessFull)
	w := do(h, "POST", "/v1/cluster/leave", `{}`)
	if w.Code != 409 || !strings.Contains(w.Body.String(), "last voter") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = do(h, "POST", "/v1/cluster/leave", `{}`, "Accept", "text/event-stream")
	if !strings.Contains(w.Body.String(), "event: progress\ndata: {\"text\":\"handing over default\"}") || !strings.Contains(w.Body.String(), "event: problem\ndata: {") {
		t.Errorf("stream: %s", w.Body)
	}
	w = do(h, "POST", "/v1/cluster/leave", `{"force":true}`, "Accept", "text/event-stream")
	if !strings.Contains(w.Body.String(), "event: done\ndata: {\"steps\":[\"handing over default\",\"left the cluster\"]}") {
		t.Errorf("stream: %s", w.Body)
	}
}
