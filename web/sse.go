package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// maxStreams bounds the streams of one handler: each costs a goroutine and a
// connection for as long as somebody looks.
const maxStreams = 128

// streamWriteTimeout is how long a client may take to accept one message.
const streamWriteTimeout = 15 * time.Second

// streams counts the streams that are open.
type streams struct{ open atomic.Int64 }

// begin turns a response into a stream of server-sent events (HTML Living
// Standard, section 9.2). It returns nil when there is nothing to stream: it has
// answered a HEAD, or refused with a problem. The caller calls end on what it got.
func (s *streams) begin(w http.ResponseWriter, r *http.Request) *eventStream {
	if s.open.Add(1) > maxStreams {
		s.open.Add(-1)
		statusProblem(http.StatusServiceUnavailable, fmt.Sprintf("%d streams are open already", maxStreams)).write(w)
		return nil
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy in between should pass messages on at once
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		s.open.Add(-1)
		return nil
	}
	return &eventStream{w: w, rc: http.NewResponseController(w), all: s}
}

// eventStream writes server-sent events. It is for one goroutine.
type eventStream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	all *streams
}

func (s *eventStream) end() { s.all.open.Add(-1) }

// send writes one message and flushes it. An error means that the client is
// gone, or as good as.
func (s *eventStream) send(name, id string, data []byte) error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(streamWriteTimeout)) // not every ResponseWriter has one
	if id != "" {
		id = "id: " + id + "\n"
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\n%sdata: %s\n\n", name, id, data); err != nil {
		return fmt.Errorf("write stream: %w", err)
	}
	if err := s.rc.Flush(); err != nil {
		return fmt.Errorf("flush stream: %w", err)
	}
	_ = s.rc.SetWriteDeadline(time.Time{}) // until the next message nothing is late
	return nil
}

// sendJSON is send with a value for data. JSON as encoding/json writes it has
// no line break, which is what one data line needs.
func (s *eventStream) sendJSON(name, id string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return s.send(name, id, b)
}

// heartbeat is a message a client can see, so that it can tell "nothing
// happens" from "nothing arrives".
func (s *eventStream) heartbeat(now time.Time) error {
	return s.sendJSON("heartbeat", "", map[string]time.Time{"time": now.UTC()})
}

// writeJSON answers with one JSON value, where huma does not do it.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client went away: nobody is left to tell
}

// wait returns true after d, and false when ctx has ended before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
