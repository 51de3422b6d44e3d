package web

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestReplicationIsToldWhole(t *testing.T) {
	b, o := world(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b.set(func(b *fakeBackend) {
		b.runtime = func(s *Status) {
			s.Replication = []PeerReplication{{Peer: "lb2", State: ReplicationStreaming, Sent: 7, LagP99MS: 1.5}}
			s.Flows.Adopted = 40
			s.LastTakeover = &Takeover{Instance: "default", From: "lb2", Epoch: 9, At: at, Adopted: 30}
		}
	})
	h := handlerAt(t, b, o, AccessFull)
	body := do(h, "GET", "/v1/replication", "").Body.Bytes()
	var got Replication
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if len(got.Peers) != 1 || got.Peers[0].LagP99MS != 1.5 || got.Adopted != 40 || got.LastTakeover == nil || got.LastTakeover.Adopted != 30 || !got.LastTakeover.At.Equal(at) {
		t.Errorf("%+v", got)
	}
	for _, part := range []string{`"resync_causes":{}`, `"inbound":{"state":"down"`, `"digest":{"rounds":0`} {
		if !strings.Contains(string(body), part) {
			t.Errorf("no %s in %s", part, body)
		}
	}
	if w := do(h, "GET", "/v1/replication/digest", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `{"peer":"lb3","equal":false,"buckets":0,"differ":0,"error":"not connected"}`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
