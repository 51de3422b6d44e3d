package web

import (
	"net/http"
	"strings"
	"testing"

	"pontoon/fsm"
)

func TestFailoverIsToldInOneSentence(t *testing.T) {
	f := fsm.Failover{Instance: "default", From: "lb1", To: "lb2", Parts: fsm.FailoverParts{
		Detected: 58.2, Confirmed: 63, Elected: 70, Committed: 75.4, Announced: 79, FirstPacket: 83,
	}}
	want := "default moved from lb1 to lb2 in 83 ms: detected 58, confirmed 63, elected 70, committed 75, announced 79, first packet 83"
	if got := FailoverText(f); got != want {
		t.Errorf("%q", got)
	}
	f.Parts = fsm.FailoverParts{Committed: 1.9, Announced: 4.25}
	if got, want := FailoverText(f), "default moved from lb1 to lb2 in 4.2 ms: committed 1.9, announced 4.2"; got != want {
		t.Errorf("%q", got)
	}
	f.Parts = fsm.FailoverParts{}
	if got := FailoverText(f); got != "default moved from lb1 to lb2" {
		t.Errorf("%q", got)
	}
}

func TestDrainIsRefusedWhileNobodyElseHoldsTheConnections(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessFull)
	for _, n := range []fsm.NodeID{"lb2", "lb3"} {
		if _, err := b.Propose(t.Context(), fsm.NodeReport{Node: n, Ready: true, LinksUp: true}); err != nil {
			t.Fatal(err)
		}
	}
	w := do(h, http.MethodPost, "/v1/nodes/lb1/drain", "")
	if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "lb2 does not hold all flows yet") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n, _ := b.State().Node("lb1"); n.Draining {
		t.Error("it drains all the same")
	}
	if w := do(h, http.MethodPost, "/v1/nodes/lb2/drain", ""); w.Code != http.StatusOK {
		t.Errorf("a node that is master of nothing: %d %s", w.Code, w.Body)
	}
	if w := do(h, http.MethodPost, "/v1/nodes/lb1/drain?force=true", ""); w.Code != http.StatusOK {
		t.Errorf("by force: %d %s", w.Code, w.Body)
	}
}
