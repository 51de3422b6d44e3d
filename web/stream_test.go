package web

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipeWriter is a client that reads a stream as it is written.
type pipeWriter struct {
	mu     sync.Mutex
	header http.Header
	code   int
	buf    bytes.Buffer
	broken bool
}

func (p *pipeWriter) Header() http.Header { return p.header }
func (p *pipeWriter) Flush()              {}

func (p *pipeWriter) WriteHeader(code int) { p.code = code }

func (p *pipeWriter) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken {
		return 0, http.ErrHandlerTimeout
	}
	return p.buf.Write(b)
}

// message is one server-sent event.
type message struct{ name, id, data string }

// take returns what has arrived since the last call.
func (p *pipeWriter) take() []message {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []message
	for _, block := range strings.Split(p.buf.String(), "\n\n") {
		var m message
		for _, line := range strings.Split(block, "\n") {
			name, value, _ := strings.Cut(line, ": ")
			switch name {
			case "event":
				m.name = value
			case "id":
				m.id = value
			case "data":
				m.data = value
			}
		}
		if m.name != "" {
			out = append(out, m)
		}
	}
	p.buf.Reset()
	return out
}

// open follows a stream in the background until the returned function is called,
// which waits for its end.
func open(t *testing.T, h http.Handler, path string, header ...string) (*pipeWriter, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequest("GET", "http://127.0.0.1"+path, nil).WithContext(ctx)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	p := &pipeWriter{header: http.Header{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.ServeHTTP(p, r)
	}()
	return p, func() { cancel(); <-done }
}

func TestStatusStreamSendsChangesAtMostTwiceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		p, end := open(t, handlerAt(t, b, o, AccessLocal), "/v1/status/stream")
		defer end()
		synctest.Wait()
		first := p.take()
		if len(first) != 1 || first[0].name != "status" || p.header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("first: %+v %v", first, p.header)
		}
		var st Status
		if err := json.Unmarshal([]byte(first[0].data), &st); err != nil || st.Self != "lb1" {
			t.Fatalf("not a status: %v %s", err, first[0].data)
		}

		n := 0
		for range 100 { // ten seconds of change
			b.set(func(b *fakeBackend) {
				b.runtime = func(st *Status) { n++; st.Flows.Established = uint64(n) }
			})
			wait(t.Context(), 100*time.Millisecond) // the bubble's clock
		}
		got := p.take()
		if len(got) < 15 || len(got) > 21 {
			t.Errorf("%d messages in ten seconds of change, want at most two a second", len(got))
		}
	})
}

func TestStatusStreamIsQuietButForHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		p, end := open(t, handlerAt(t, b, o, AccessLocal), "/v1/status/stream")
		defer end()
		wait(t.Context(), 11*time.Second) // the bubble's clock
		got := p.take()
		if len(got) != 3 || got[1].name != "heartbeat" || got[2].name != "heartbeat" {
			t.Errorf("got %+v, want a status and two heartbeats", got)
		}
	})
}

func TestStatusStreamTellsOfNoClusterAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		b.err = ErrNoCluster
		p, end := open(t, handlerAt(t, b, o, AccessLocal), "/v1/status/stream")
		defer end()
		synctest.Wait()
		if got := p.take(); len(got) != 1 || got[0].name != "problem" || !strings.Contains(got[0].data, "no_cluster") {
			t.Fatalf("got %+v", got)
		}
		b.set(func(b *fakeBackend) { b.err = nil })
		wait(t.Context(), time.Second) // the bubble's clock
		if got := p.take(); len(got) != 1 || got[0].name != "status" {
			t.Errorf("got %+v, want the status", got)
		}
	})
}

func TestManyStatusStreamsCostOneReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		h := handlerAt(t, b, o, AccessLocal)
		for range 50 {
			_, end := open(t, h, "/v1/status/stream")
			defer end()
		}
		wait(t.Context(), 10*time.Second) // the bubble's clock
		if b.set(func(b *fakeBackend) {}); b.reads > 22 {
			t.Errorf("%d readings in ten seconds for 50 streams", b.reads)
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		h := handlerAt(t, b, o, AccessLocal)
		var ends []func()
		for range maxStreams {
			_, end := open(t, h, "/v1/status/stream")
			ends = append(ends, end)
		}
		synctest.Wait()
		if w := do(h, "GET", "/v1/status/stream", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("one too many: %d", w.Code)
		}
		ends[0]()
		p, end := open(t, h, "/v1/status/stream")
		synctest.Wait()
		if p.code != 200 {
			t.Errorf("after one has gone: %d", p.code)
		}
		for _, e := range append(ends[1:], end) {
			e()
		}
	})
}

func TestAStreamEndsWhenItsClientHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		h := handlerAt(t, b, o, AccessLocal)
		done := make(chan struct{})
		p := &pipeWriter{header: http.Header{}}
		go func() {
			defer close(done)
			h.ServeHTTP(p, httptest.NewRequest("GET", "http://127.0.0.1/v1/status/stream", nil))
		}()
		synctest.Wait()
		p.mu.Lock()
		p.broken = true
		p.mu.Unlock()
		<-done // in the bubble: at the next heartbeat, or never
	})
}

func TestEventStreamFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		b.events = []Event{{Time: time.Now().Add(-time.Minute), Kind: EventJoin, Text: "old"}}
		p, end := open(t, handlerAt(t, b, o, AccessLocal), "/v1/events?since=1h", "Accept", "text/event-stream")
		defer end()
		synctest.Wait()
		first := p.take()
		if len(first) != 1 || first[0].name != "event" || !strings.Contains(first[0].data, `"old"`) || first[0].id == "" {
			t.Fatalf("backlog: %+v", first)
		}
		wait(t.Context(), 7*time.Second) // the bubble's clock
		b.happen(Event{Time: time.Now(), Kind: EventFailover, Text: "new"})
		synctest.Wait()
		got := p.take()
		if len(got) != 2 || got[0].name != "heartbeat" || !strings.Contains(got[1].data, `"new"`) {
			t.Errorf("then: %+v", got)
		}
	})
}

func TestEventStreamContinuesAfterTheLastMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, o := world(t)
		seen := time.Now().Add(-time.Minute)
		b.events = []Event{{Time: seen, Kind: EventJoin, Text: "seen"}, {Time: seen.Add(time.Second), Kind: EventJoin, Text: "missed"}}
		p, end := open(t, handlerAt(t, b, o, AccessLocal), "/v1/events?follow=true",
			"Last-Event-ID", seen.UTC().Format(time.RFC3339Nano))
		defer end()
		synctest.Wait()
		if got := p.take(); len(got) != 1 || !strings.Contains(got[0].data, "missed") {
			t.Errorf("got %+v, want only what was missed", got)
		}
	})
}

func TestEventsAreAListOrAStreamAsAsked(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessLocal)
	w := do(h, "GET", "/v1/events?since=24h", "", "Accept", "application/json")
	var list []Event
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != 2 {
		t.Errorf("list: %v %s", err, w.Body)
	}
	w = do(h, "GET", "/v1/events?since=1h", "")
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != 1 {
		t.Errorf("since 1h: %v %s", err, w.Body)
	}
	w = do(h, "GET", "/v1/events?since=24h&follow=false", "", "Accept", "text/event-stream")
	if strings.Count(w.Body.String(), "event: event") != 2 {
		t.Errorf("stream without following: %s", w.Body)
	}
	since := list[0].Time.Add(-time.Second).UTC().Format(time.RFC3339)
	if w = do(h, "GET", "/v1/events?since="+since, ""); w.Code != 200 || !strings.Contains(w.Body.String(), "failover") {
		t.Errorf("since a time: %d %s", w.Code, w.Body)
	}
}

func TestAskingForTheHeadOfAStreamReturns(t *testing.T) {
	b, o := world(t)
	h := handlerAt(t, b, o, AccessLocal)
	for _, path := range []string{"/v1/status/stream", "/v1/events?follow=true"} {
		if w := do(h, "HEAD", path, ""); w.Code != 200 || w.Header().Get("Content-Type") != "text/event-stream" {
			t.Errorf("HEAD %s: %d %v", path, w.Code, w.Header())
		}
	}
}
