package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"pontoon/fsm"
)

type eventsInput struct {
	Since       string `query:"since" default:"1h" doc:"From when: a span like 1h, or a time (RFC 3339)."`
	Follow      string `query:"follow" enum:"true,false" doc:"Go on with what happens next. Default: true for server-sent events, else false."`
	Accept      string `header:"Accept" doc:"text/event-stream for server-sent events."`
	LastEventID string `header:"Last-Event-ID" doc:"Continue after this message (sent by browsers)."`
}

func (s *server) eventRoutes() {
	o := s.operation(op{
		method: http.MethodGet, path: "/v1/events", id: "list-events", tag: "events", summary: "What happened",
		text: "A JSON list, oldest first; or server-sent events when asked for by `follow=true` or by Accept: messages `event` (an Event) " +
			"and `heartbeat` every five seconds of silence.",
	})
	o.Responses = streamResponses("The events.")
	o.Responses["200"].Content["application/json"] = &huma.MediaType{Schema: &huma.Schema{
		Type: huma.TypeArray, Items: s.schemas.Schema(reflect.TypeFor[Event](), true, "Event"),
	}}
	huma.Register(s.api, o, func(_ context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		since, err := sinceTime(in.Since, time.Now())
		if err != nil {
			return nil, NewProblem(err)
		}
		sse := in.Follow == "true" || strings.Contains(in.Accept, "text/event-stream")
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			if !sse {
				s.writeEvents(w, since)
				return
			}
			after, err := time.Parse(time.RFC3339Nano, in.LastEventID)
			if err == nil {
				since = after
			}
			s.streamEvents(r, w, since, after, in.Follow != "false")
		}}, nil
	})
}

// sinceTime reads a span before now, or a time.
func sinceTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("since %q: want a span like 1h or a time like 2006-01-02T15:04:05Z: %w", s, fsm.ErrInvalid)
}

// writeEvents answers with a list.
func (s *server) writeEvents(w http.ResponseWriter, since time.Time) {
	backlog, _ := s.Backend.Events(since)
	writeJSON(w, notNil(backlog))
}

// streamEvents answers with server-sent events. after leaves out what a client
// that comes back has seen; zero leaves out nothing.
func (s *server) streamEvents(r *http.Request, w http.ResponseWriter, since, after time.Time, follow bool) {
	stream := s.streams.begin(w, r)
	if stream == nil {
		return
	}
	defer stream.end()
	ctx := r.Context()
	events, next := s.Backend.Events(since)
	for {
		for _, e := range events {
			if !after.IsZero() && !e.Time.After(after) {
				continue
			}
			if stream.sendJSON("event", e.Time.UTC().Format(time.RFC3339Nano), e) != nil {
				return // the client went away: that is how a stream ends
			}
		}
		if !follow {
			return
		}
		var err error
		if events, err = nextEvents(ctx, next); err != nil {
			return // the client or the node goes away
		}
		if len(events) == 0 && stream.heartbeat(time.Now()) != nil {
			return
		}
	}
}

// nextEvents waits for more, and returns nothing after a heartbeat's time.
func nextEvents(ctx context.Context, next func(context.Context) ([]Event, error)) ([]Event, error) {
	waiting, cancel := context.WithTimeout(ctx, heartbeatInterval)
	defer cancel()
	events, err := next(waiting)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, nil
	}
	return events, err
}
