package web

import (
	"encoding/json"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
)

// routeList is every route of the API. A route that is added or lost is a
// change of the contract.
var routeList = []string{
	"DELETE /v1/bgp/peers/{address}", "DELETE /v1/flows", "DELETE /v1/instances/{name}", "DELETE /v1/nodes/{name}", "DELETE /v1/pools/{name}", "DELETE /v1/reservations/{address}", "DELETE /v1/services/{name}",
	"DELETE /v1/tokens/{id}", "DELETE /v1/vips/{address}",
	"GET /", "GET /healthz", "GET /metrics", "GET /readyz",
	"GET /v1/bfd", "GET /v1/bgp", "GET /v1/bgp/peers", "GET /v1/bgp/peers/{address}", "GET /v1/bgp/routes", "GET /v1/events", "GET /v1/flows", "GET /v1/flows/count", "GET /v1/instances", "GET /v1/instances/{name}",
	"GET /v1/nodes", "GET /v1/nodes/{name}", "GET /v1/openapi.json", "GET /v1/pools", "GET /v1/pools/{name}", "GET /v1/rebalance", "GET /v1/replication", "GET /v1/replication/digest", "GET /v1/services", "GET /v1/services/{name}",
	"GET /v1/status", "GET /v1/status/stream", "GET /v1/tokens", "GET /v1/trace", "GET /v1/vips", "GET /v1/vips/{address}",
	"POST /v1/cluster/init", "POST /v1/cluster/join", "POST /v1/cluster/leave", "POST /v1/cluster/recover", "POST /v1/instances/{name}/move",
	"POST /v1/nodes/{name}/drain", "POST /v1/nodes/{name}/resume",
	"POST /v1/services/{name}/endpoints/{address}/drain", "POST /v1/services/{name}/endpoints/{address}/resume",
	"POST /v1/tokens",
	"PUT /v1/bgp", "PUT /v1/bgp/peers/{address}", "PUT /v1/instances/{name}", "PUT /v1/pools/{name}", "PUT /v1/reservations/{address}", "PUT /v1/services/{name}", "PUT /v1/vips/{address}",
}

func document(t *testing.T) map[string]any {
	t.Helper()
	b, o := world(t)
	w := do(handlerAt(t, b, o, AccessFull), "GET", "/v1/openapi.json", "")
	var doc map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestOpenAPIDocumentNamesEveryRoute(t *testing.T) {
	doc := document(t)
	var got []string
	for path, item := range doc["paths"].(map[string]any) {
		for method := range item.(map[string]any) {
			got = append(got, strings.ToUpper(method)+" "+path)
		}
	}
	sort.Strings(got)
	if !slices.Equal(got, routeList) {
		t.Errorf("routes\n got %q\nwant %q", got, routeList)
	}
}

func TestOpenAPIDocumentHoldsTogether(t *testing.T) {
	doc := document(t)
	if doc["openapi"] != "3.1.0" {
		t.Errorf("openapi %v", doc["openapi"])
	}
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	ids := map[string]bool{}
	walk(doc, func(key string, v any) {
		switch key {
		case "$ref":
			if name := strings.TrimPrefix(v.(string), "#/components/schemas/"); schemas[name] == nil {
				t.Errorf("%v refers to nothing", v)
			}
		case "operationId":
			if ids[v.(string)] {
				t.Errorf("operation id %v is used twice", v)
			}
			ids[v.(string)] = true
		}
	})
	if schemas["Problem"] == nil || schemas["ErrorModel"] != nil {
		t.Error("errors are not described as Problem")
	}
	svc := schemas["Service"].(map[string]any)["properties"].(map[string]any)
	if svc["idle_timeout"].(map[string]any)["type"] != "string" {
		t.Error("a duration is not described as text")
	}
	if !reflect.DeepEqual(svc["mode"].(map[string]any)["enum"], []any{"dnat", "onearm", "fullnat", "dsr"}) {
		t.Errorf("mode is described as %v", svc["mode"])
	}
}

// walk visits every key of a JSON value.
func walk(v any, visit func(key string, v any)) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if _, isText := x.(string); isText {
				visit(k, x)
			}
			walk(x, visit)
		}
	case []any:
		for _, x := range v {
			walk(x, visit)
		}
	}
}

// What the contract writes down for `status` and `conntrack list`, by value.
const (
	contractStatus = `
{"cluster":   {"id":"…","leader":"lb1","term":3,"applied":4183,"quorum":true},
 "self":      "lb1",
 "nodes":     [{"name":"lb1","role":"lb","address":"192.168.80.11:7400","raft":"leader|voter|nonvoter","alive":true,"ready":true,
                "in_sync":true,"draining":false,"applied":4183,"master_of":["default"]}],
 "instances": [{"name":"default","master":"lb1","succession":["lb1","lb2","lb3"],"epoch":4180}],
 "services":  [{"name":"web","vip":"192.168.80.200","port":80,"protocol":"tcp","mode":"fullnat","algorithm":"rr",
                "endpoints":[{"address":"10.2.0.2:8080","weight":1,"admin":"up","health":"up|down|unknown","flows":12}]}],
 "replication":[{"peer":"lb2","state":"snapshot|streaming|down","sent":0,"acked":0,"lag_ms":0.0,"resyncs":0,"dropped":0}],
 "flows":     {"established":0,"half_open":0,"owned":0,"replica":0,"adopted":0,"max":1048576},
 "bfd":       [{"peer":"lb2","address":"…","state":"up|down|init","interval_ms":50,"multiplier":3}],
 "bgp":       [{"peer":"…","as":65101,"state":"established","received":0,"advertised":1,"bfd":"up|down|off"}]}`
	contractFlows = `[{"protocol":"tcp","client":"a:p","vip":"a:p","snat":"a:p","endpoint":"a:p","state":"established","service":"web",
"node":"lb1","owner":true,"age_s":1.5,"idle_s":0.1,"packets":0,"bytes":0}]`
)

func TestJSONKeysAreThoseOfTheContract(t *testing.T) {
	b, o := world(t)
	runtime := b.runtime
	b.runtime = func(st *Status) {
		runtime(st)
		st.BFD = []BFDSession{{Peer: "lb2", Address: "192.168.80.12", State: "up", IntervalMS: 50, Multiplier: 3}}
		st.BGP = []BGPPeer{{Peer: "192.168.80.1", AS: 65101, State: "established", BFD: "off"}}
	}
	h := handlerAt(t, b, o, AccessFull)
	for path, contract := range map[string]string{"/v1/status": contractStatus, "/v1/flows": contractFlows} {
		var want, got any
		if err := json.Unmarshal([]byte(contract), &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(do(h, "GET", path, "").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		sameKeys(t, path, want, got)
	}
}

// sameKeys reports what of want, keys and kinds of values, got does not have.
func sameKeys(t *testing.T, at string, want, got any) {
	t.Helper()
	if reflect.TypeOf(want) != reflect.TypeOf(got) {
		t.Errorf("%s: is %T (%v), want %T", at, got, got, want)
		return
	}
	switch want := want.(type) {
	case map[string]any:
		for k, v := range want {
			sameKeys(t, at+"."+k, v, got.(map[string]any)[k])
		}
	case []any:
		if len(got.([]any)) == 0 {
			t.Errorf("%s: is empty", at)
			return
		}
		sameKeys(t, at+"[0]", want[0], got.([]any)[0])
	}
}

func TestStatusReadsBackAsItWasWritten(t *testing.T) {
	b, o := world(t)
	body := do(handlerAt(t, b, o, AccessFull), "GET", "/v1/status", "").Body.Bytes()
	var st Status
	if err := json.Unmarshal(body, &st); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(body)) != string(again) {
		t.Errorf("a client reads something else:\n%s\n%s", body, again)
	}
}

func TestEmptyListsAreListsNotNull(t *testing.T) {
	b, o := world(t)
	b.runtime = func(st *Status) {
		*st = Status{Nodes: make([]NodeStatus, 1), Services: make([]ServiceStatus, 1), Instances: make([]InstanceStatus, 1)}
	}
	body := do(handlerAt(t, b, o, AccessFull), "GET", "/v1/status", "").Body.String()
	if strings.Contains(body, ":null") {
		t.Errorf("null in %s", body)
	}
	b.flows = nil
	if body := do(handlerAt(t, b, o, AccessFull), "GET", "/v1/flows", "").Body.String(); strings.TrimSpace(body) != "[]" {
		t.Errorf("no flows: %s", body)
	}
}
