package web

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pontoon/fsm"
)

// tracingWorld is a handler whose backend tells n packets and then waits.
func tracingWorld(t *testing.T, n int) *fakeBackend {
	t.Helper()
	b, _ := world(t)
	for range n {
		b.traced = append(b.traced, TraceEvent{
			Time: time.Now(), Protocol: "tcp", Source: ap("10.1.0.5:40001"), Destination: ap("192.168.80.200:80"), Verdict: TraceForwarded,
			Steps: []TraceStep{{"parse", "IPv4"}}, Before: []byte{1, 2}, After: []byte{3},
		})
	}
	return b
}

func TestTraceStreamsPacketsUntilItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tracingWorld(t, 2)
		p, end := open(t, handlerAt(t, b, &fakeOps{}, AccessFull), "/v1/trace?client=10.1.0.0/24&service=web&timeout=12s")
		defer end()
		synctest.Wait()
		got := p.take()
		if len(got) != 3 || got[0].name != "heartbeat" || got[1].name != "trace" {
			t.Fatalf("first %+v", got)
		}
		var e TraceEvent
		if err := json.Unmarshal([]byte(got[1].data), &e); err != nil || e.Source != ap("10.1.0.5:40001") || len(e.Before) != 2 {
			t.Errorf("%v %+v", err, e)
		}
		if f := b.traceFilter; f.Client.String() != "10.1.0.0/24" || f.Service != "web" {
			t.Errorf("asked for %+v", f)
		}
		wait(t.Context(), 13*time.Second) // the bubble's clock
		got = p.take()
		if len(got) != 3 || got[0].name != "heartbeat" || got[2].name != "end" ||
			!strings.Contains(got[2].data, `"timeout"`) || !strings.Contains(got[2].data, `"packets":2`) {
			t.Errorf("then %+v", got)
		}
	})
}

func TestTraceEndsAfterItsCount(t *testing.T) {
	b := tracingWorld(t, 5)
	w := do(handlerAt(t, b, &fakeOps{}, AccessFull), "GET", "/v1/trace?service=web&count=3", "")
	if n := strings.Count(w.Body.String(), "event: trace"); n != 3 || !strings.Contains(w.Body.String(), `"reason":"count"`) {
		t.Errorf("%d packets: %s", n, w.Body)
	}
}

func TestTraceNeedsTheToken(t *testing.T) {
	b := tracingWorld(t, 5)
	const path = "/v1/trace?service=web&count=1"
	for _, level := range []AccessLevel{AccessLocal, AccessRemote} {
		h := handlerAt(t, b, &fakeOps{}, level)
		if w := do(h, "GET", path, ""); w.Code != 401 {
			t.Errorf("level %d without the token: %d", level, w.Code)
		}
		if w := do(h, "GET", path, "", "Authorization", "Bearer "+testToken); w.Code != 200 {
			t.Errorf("level %d with the token: %d", level, w.Code)
		}
	}
}

func TestTraceIsRefusedWithAReason(t *testing.T) {
	for query, want := range map[string]int{
		"": 422, "client=nobody": 422, "service=web&timeout=11m": 422, "service=web&timeout=0s": 422, "service=web&count=0": 422,
		"service=web&count=100001": 422, "client=10.1.0.5&more=1": 422,
	} {
		if w := do(handlerAt(t, tracingWorld(t, 0), &fakeOps{}, AccessFull), "GET", "/v1/trace?"+query, ""); w.Code != want {
			t.Errorf("%q: %d %s", query, w.Code, w.Body)
		}
	}
	for code, err := range map[string]error{"trace_busy": ErrTraceBusy, "no_cluster": ErrNoCluster, "not_found": fsm.ErrNotFound, "internal": errors.New("no")} {
		b := tracingWorld(t, 0)
		b.err = err
		w := do(handlerAt(t, b, &fakeOps{}, AccessFull), "GET", "/v1/trace?client=10.1.0.5", "")
		if !strings.Contains(w.Body.String(), `"code":"`+code+`"`) {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
}

func TestTraceEndsWhenItsClientHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, end := open(t, handlerAt(t, tracingWorld(t, 1), &fakeOps{}, AccessFull), "/v1/trace?client=10.1.0.5&timeout=10m")
		synctest.Wait()
		p.mu.Lock()
		p.broken = true
		p.mu.Unlock()
		wait(t.Context(), 6*time.Second) // the bubble's clock: at the next heartbeat
		end()
	})
}
