package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// shape is what a value must be: a word for its JSON type.
type shape string

const (
	aString shape = "string"
	aNumber shape = "number"
	aBool   shape = "bool"
	aList   shape = "list"
)

// statusKeys are the keys of `status -o json` as the contract has them. "[]"
// stands for every element, and there must be one, of the list before it.
var statusKeys = map[string]shape{
	"cluster.id": aString, "cluster.leader": aString, "cluster.term": aNumber, "cluster.applied": aNumber, "cluster.quorum": aBool,
	"self":         aString,
	"nodes[].name": aString, "nodes[].role": aString, "nodes[].address": aString, "nodes[].raft": aString, "nodes[].alive": aBool,
	"nodes[].ready": aBool, "nodes[].in_sync": aBool, "nodes[].draining": aBool, "nodes[].applied": aNumber, "nodes[].master_of": aList,
	"instances[].name": aString, "instances[].master": aString, "instances[].succession[]": aString, "instances[].epoch": aNumber,
	"services[].name": aString, "services[].vip": aString, "services[].port": aNumber, "services[].protocol": aString,
	"services[].mode": aString, "services[].algorithm": aString,
	"services[].endpoints[].address": aString, "services[].endpoints[].weight": aNumber, "services[].endpoints[].admin": aString,
	"services[].endpoints[].health": aString, "services[].endpoints[].flows": aNumber,
	"replication[].peer": aString, "replication[].state": aString, "replication[].sent": aNumber, "replication[].acked": aNumber,
	"replication[].lag_ms": aNumber, "replication[].resyncs": aNumber, "replication[].dropped": aNumber,
	"flows.established": aNumber, "flows.half_open": aNumber, "flows.owned": aNumber, "flows.replica": aNumber,
	"flows.adopted": aNumber, "flows.max": aNumber,
	"bfd": aList, "bgp": aList,
}

// conntrackKeys are those of `conntrack list -o json`.
var conntrackKeys = map[string]shape{
	"[].protocol": aString, "[].client": aString, "[].vip": aString, "[].snat": aString, "[].endpoint": aString,
	"[].state": aString, "[].service": aString, "[].node": aString, "[].owner": aBool, "[].age_s": aNumber, "[].idle_s": aNumber,
	"[].packets": aNumber, "[].bytes": aNumber,
}

// nodeKeys are those of `node list -o json`.
var nodeKeys = map[string]shape{
	"[].name": aString, "[].role": aString, "[].address": aString, "[].raft": aString, "[].alive": aBool, "[].ready": aBool,
	"[].in_sync": aBool, "[].draining": aBool, "[].applied": aNumber, "[].master_of": aList,
}

// checkKeys reports every key that is missing or of another type.
func checkKeys(t testing.TB, what, doc string, want map[string]shape) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(doc), &v); err != nil {
		t.Errorf("%s: %v in %.200s", what, err, doc)
		return
	}
	for path, s := range want {
		if err := lookUp(v, path, s); err != nil {
			t.Errorf("%s: %s: %v", what, path, err)
		}
	}
}

// lookUp follows a path down to a value of the wanted shape.
func lookUp(v any, path string, want shape) error {
	if path == "" {
		if got := shapeOf(v); got != want {
			return fmt.Errorf("is %s, want %s", got, want)
		}
		return nil
	}
	if rest, ok := strings.CutPrefix(path, "[]"); ok {
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			return errors.New("want a list that is not empty")
		}
		for _, e := range list {
			if err := lookUp(e, strings.TrimPrefix(rest, "."), want); err != nil {
				return err
			}
		}
		return nil
	}
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		end = len(path)
	}
	object, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("want an object with %s", path[:end])
	}
	next, ok := object[path[:end]]
	if !ok {
		return fmt.Errorf("there is no %s", path[:end])
	}
	return lookUp(next, strings.TrimPrefix(path[end:], "."), want)
}

func shapeOf(v any) shape {
	switch v.(type) {
	case string:
		return aString
	case float64:
		return aNumber
	case bool:
		return aBool
	case []any:
		return aList
	case nil:
		return "null"
	}
	return "object"
}

func TestEveryNodeSpeaksTheContract(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	serve(t, l)
	declare(t, l, "fullnat", false)
	clients := connect(t, l, 20)
	steady(t, clients)
	waitSameFlows(t, l.Nodes(), 20)
	for _, n := range l.Nodes() {
		t.Run(n.Name(), func(t *testing.T) {
			checkKeys(t, "status", cli(t, n, "status", "-o", "json"), statusKeys)
			checkKeys(t, "conntrack list", cli(t, n, "conntrack", "list", "-o", "json"), conntrackKeys)
			checkKeys(t, "node list", cli(t, n, "node", "list", "-o", "json"), nodeKeys)
			checkAppliedEverywhere(t, l, n)
			checkHTTP(t, n)
		})
	}
	t.Run("the master's replication counters move", func(t *testing.T) { checkReplicationMoves(t, l) })
}

// checkAppliedEverywhere waits until n reports every node at the cluster's
// newest index: "applied 4183 of 4183".
func checkAppliedEverywhere(t testing.TB, l *lab.Lab, n *lab.Node) {
	t.Helper()
	eventually(t, 5*time.Second, n.Name()+" to see all at the newest index", func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		for _, name := range names(l) {
			if m, _ := s.Node(name); m.Applied != s.Cluster.Applied {
				return fmt.Errorf("%s is at %d of %d", name, m.Applied, s.Cluster.Applied)
			}
		}
		return nil
	})
}

func checkReplicationMoves(t *testing.T, l *lab.Lab) {
	m := master(t, l, "")
	sums := func(ctx context.Context) (sent, acked uint64, err error) {
		var s struct {
			Replication []struct{ Sent, Acked uint64 } `json:"replication"`
		}
		err = get(ctx, m, "/v1/status", &s)
		for _, r := range s.Replication {
			sent, acked = sent+r.Sent, acked+r.Acked
		}
		return sent, acked, err
	}
	sent0, acked0, err := sums(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	connect(t, l, 20)
	eventually(t, 10*time.Second, "40 more records sent and acknowledged", func(ctx context.Context) error {
		sent, acked, err := sums(ctx)
		if err == nil && (sent < sent0+40 || acked < acked0+40) {
			err = fmt.Errorf("sent %d+%d, acked %d+%d", sent0, sent-sent0, acked0, acked-acked0)
		}
		return err
	})
}

// loopbackAPI calls api.listen from inside the node's namespace.
func loopbackAPI(ctx context.Context, n *lab.Node, method, path, token, body string) (code int, answer string, header http.Header, err error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		ap, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return n.Dial(ctx, ap)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:7480"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header, err
}

func checkHTTP(t *testing.T, n *lab.Node) {
	ctx := within(t, 10*time.Second)
	for path, holds := range map[string]string{
		"/healthz": "", "/readyz": "", "/metrics": "pontoon_", "/v1/openapi.json": `"openapi"`, "/": "<html", "/v1/status": n.Name(),
	} {
		code, body, _, err := loopbackAPI(ctx, n, http.MethodGet, path, "", "")
		if err != nil || code != http.StatusOK || !strings.Contains(body, holds) {
			t.Errorf("GET %s: %d %v, want 200 with %q in %.200s", path, code, err, holds, body)
		}
	}
	raw, err := os.ReadFile(filepath.Join(n.DataDir(), "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(raw))
	body := fmt.Sprintf(`{"name":"by-http","vip":%q,"port":9%s,"endpoints":[{"address":"192.168.80.21:8080","weight":1}]}`,
		lab.ServiceVIP(), strings.TrimPrefix(n.Name(), "lb"))
	for _, wrong := range []string{"", "x" + token} {
		code, said, header, err := loopbackAPI(ctx, n, http.MethodPut, "/v1/services/by-http", wrong, body)
		if err != nil || code != http.StatusUnauthorized {
			t.Errorf("a write with token %q: %d %v, want 401", wrong, code, err)
		}
		if ct := header.Get("Content-Type"); !strings.HasPrefix(ct, "application/problem+json") {
			t.Errorf("the refusal is %q: %s", ct, said)
		}
	}
	code, said, _, err := loopbackAPI(ctx, n, http.MethodPut, "/v1/services/by-http", token, body)
	var done struct {
		Index uint64 `json:"index"`
	}
	if err != nil || code/100 != 2 || json.Unmarshal([]byte(said), &done) != nil || done.Index == 0 {
		t.Errorf("a write with the token: %d %v %s, want 2xx with an index", code, err, said)
	}
}

func TestAWitnessVotesAndOwnsNothing(t *testing.T) {
	l := newLab(t, lab.Config{Topology: lab.TwoLeg, Nodes: 3, Witnesses: 1, Clients: 1, Endpoints: 2})
	first, second, witness := l.Nodes()[0], l.Nodes()[1], l.Nodes()[2]
	cli(t, first, "init")
	join(t, second, first)
	refused(t, witness, "role lb|--role witness", "join", first.ClusterAddress().String(), "--token", newToken(t, first))
	cli(t, witness, "join", first.ClusterAddress().String(), "--token", newToken(t, first, "--role", "witness"))
	waitHealthy(t, l)
	serve(t, l)
	declare(t, l, "fullnat", true)
	clients := connect(t, l, 50)
	steady(t, clients)
	waitSameFlows(t, []*lab.Node{first, second}, 50)
	if pins, _ := filepath.Glob(filepath.Join(witness.PinDir(), "*")); len(pins) > 0 {
		t.Errorf("the witness has pinned %v", pins)
	}
	refused(t, first, witness.Name(), "instance", "move", "default", "--to", witness.Name())

	old := master(t, l, "")
	late := stalls(t)
	w := clients.Window()
	if err := old.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := takenOver(t, l, w, old, failoverGap, late)
	if next == witness {
		t.Fatal("the witness is master")
	}
	s := status(t, witness)
	if n, _ := s.Node(witness.Name()); (n.Raft != "voter" && n.Raft != "leader") || len(n.MasterOf) > 0 || !s.Cluster.Quorum {
		t.Errorf("after the death of %s the witness is %+v, quorum %t", old.Name(), n, s.Cluster.Quorum)
	}
	cli(t, witness, "service", "create", "more", "--vip", lab.ServiceVIP().String(), "--port", "81", "--endpoint", "10.2.0.21:8080")
	if err := old.PowerOn(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
}
