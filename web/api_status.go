package web

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// How often the streams look and speak.
const (
	statusInterval    = 500 * time.Millisecond // at most two messages a second
	heartbeatInterval = 5 * time.Second
	statusTimeout     = 5 * time.Second
)

func (s *server) statusRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/status", id: "get-status", tag: "status",
		summary: "Everything this node knows, as `pontoon status -o json`",
	}, func(ctx context.Context, _ *struct{}) (*answer[Status], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[Status]{Body: st}, nil
	})
	stream := s.operation(op{
		method: http.MethodGet, path: "/v1/status/stream", id: "stream-status", tag: "status",
		summary: "The status whenever it changes, as server-sent events",
		text: "Messages: `status` (a Status, at most two a second), `problem` (a Problem, while the status cannot be read, " +
			"as when this node is in no cluster) and `heartbeat` every five seconds of silence.",
	})
	stream.Responses = streamResponses("Messages status, problem and heartbeat.")
	huma.Register(s.api, stream, func(context.Context, *struct{}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			s.streamStatus(r, w)
		}}, nil
	})
	s.healthRoute("/healthz", "get-live", "Does the daemon work?", func(h Health) bool { return h.Live })
	s.healthRoute("/readyz", "get-ready", "Could this node own an instance, or vote if it is a witness?", func(h Health) bool { return h.Ready })
}

// streamResponses documents a stream.
func streamResponses(about string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: about,
		Content:     map[string]*huma.MediaType{"text/event-stream": {}},
	}}
}

type healthAnswer struct {
	Status int
	Body   Health
}

// healthRoute answers 200 or 503, with the reasons.
func (s *server) healthRoute(path, id, summary string, good func(Health) bool) {
	handle(s, op{
		method: http.MethodGet, path: path, id: id, tag: "health", summary: summary,
		text: "Needs no token. Status 503 and the reasons when it is not so.",
	}, func(context.Context, *struct{}) (*healthAnswer, error) {
		h := s.Backend.Health()
		h.Reasons = notNil(h.Reasons)
		out := &healthAnswer{Status: http.StatusOK, Body: h}
		if !good(h) {
			out.Status = http.StatusServiceUnavailable
		}
		return out, nil
	})
}

// readStatus gathers the status and completes it.
func (s *server) readStatus(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := s.Backend.Status(ctx)
	if err != nil {
		return Status{}, err
	}
	st.Version = s.Version
	instanceOf := map[netip.Addr]string{}
	for _, v := range st.VIPs {
		instanceOf[v.Address] = v.Instance
	}
	state := s.Backend.State()
	for i := range st.Services {
		st.Services[i].Instance = instanceOf[st.Services[i].VIP]
		st.Services[i].complete(state)
	}
	st.Pools = PoolBriefs(state)
	st.Summary = Summarise(st)
	st.normalise()
	return st, nil
}

// streamStatus sends the status whenever it differs from what was sent last.
func (s *server) streamStatus(r *http.Request, w http.ResponseWriter) {
	stream := s.streams.begin(w, r)
	if stream == nil {
		return
	}
	defer stream.end()
	ctx := r.Context()
	var last []byte
	spoke := time.Now()
	for {
		name := "status"
		data, err := s.status.get(ctx)
		if err != nil {
			name = "problem"
			if data, err = json.Marshal(NewProblem(err)); err != nil {
				return
			}
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return
		case !bytes.Equal(data, last):
			err = stream.send(name, "", data)
			last, spoke = data, now
		case now.Sub(spoke) >= heartbeatInterval:
			err = stream.heartbeat(now)
			spoke = now
		}
		if err != nil || !wait(ctx, statusInterval) {
			return // the client went away: that is how a stream ends
		}
	}
}

// statusCache shares one reading of the status among the streams, so that the
// cost of many open pages is that of one.
type statusCache struct {
	read func(context.Context) (Status, error)

	mu   sync.Mutex
	at   time.Time
	json []byte
}

// get returns the status as JSON, read within the last interval. Readings do
// not overlap; one that fails is the caller's alone. The bytes are shared: read
// only.
func (c *statusCache) get(ctx context.Context) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Less than an interval, so that a single stream sees a new reading each time.
	if c.json != nil && time.Since(c.at) < statusInterval*4/5 {
		return c.json, nil
	}
	st, err := c.read(ctx)
	if err != nil {
		c.json = nil
		return nil, err
	}
	b, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	c.json, c.at = b, time.Now()
	return b, nil
}
