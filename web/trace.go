package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
)

// The bounds of one tracing session. The tags of traceInput say the same.
const (
	DefaultTraceCount   = 1000
	MaxTraceCount       = 100_000
	DefaultTraceTimeout = 30 * time.Second
	MaxTraceTimeout     = 10 * time.Minute
)

// tracePath is where packets are traced. It shows what is in them, so reading
// there asks for the token as a write does.
const tracePath = "/v1/trace"

// ErrTraceBusy says that somebody else traces packets on this node.
var ErrTraceBusy = errors.New("packets are being traced on this node already, one session at a time: try again when that has ended")

// The verdicts of a TraceEvent.
const (
	TraceForwarded = "forwarded"
	TraceAnswered  = "answered"
	TraceDropped   = "dropped"
	TracePassed    = "passed"
)

// TraceFilter chooses packets to trace. Client or Service is set.
type TraceFilter struct {
	Client     netip.Prefix // at either end of the packet or of its connection; the zero Prefix is any
	ClientPort uint16       // the port there; 0 is any
	Service    string       // name of a service; "" is any
}

// TraceStep is one decision about a packet.
type TraceStep struct {
	Decision string `json:"decision" example:"select" doc:"A word for what was decided."`
	Text     string `json:"text" example:"place 3 of the table is endpoint 10.2.0.2:8080"`
}

// TraceEvent is what the data plane did with one packet, as `pontoon trace -o json` prints it.
type TraceEvent struct {
	Time        time.Time      `json:"time"`
	Node        fsm.NodeID     `json:"node"`
	Interface   string         `json:"interface" doc:"The one it came in on."`
	Protocol    string         `json:"protocol" example:"tcp"`
	Source      netip.AddrPort `json:"source" doc:"As it came in; port 0 where there is none."`
	Destination netip.AddrPort `json:"destination"`
	Flags       string         `json:"flags,omitempty" example:"SYN ACK" doc:"Of TCP."`
	Length      uint32         `json:"length" doc:"Of the frame, in bytes."`
	SentLength  uint32         `json:"sent_length,omitempty" doc:"Of the frame that left, in bytes."`
	Segments    uint32         `json:"segments,omitempty" doc:"Packets on the wire, where the frame stands for several."`
	VLAN        uint16         `json:"vlan,omitempty"`
	Direction   string         `json:"direction,omitempty" enum:"forward,reply" doc:"Of its connection: forward is towards the endpoint."`
	Service     string         `json:"service,omitempty"`
	Client      netip.AddrPort `json:"client,omitzero" doc:"Of its connection."`
	Endpoint    netip.AddrPort `json:"endpoint,omitzero" doc:"Of its connection."`
	Verdict     string         `json:"verdict" enum:"forwarded,answered,dropped,passed" doc:"answered: the sender was told something. passed: left to the host."`
	Reason      string         `json:"reason,omitempty" doc:"Of a drop; the name its counter has in the metrics."`
	Out         string         `json:"out,omitempty" doc:"The interface it left by."`
	Steps       []TraceStep    `json:"steps" doc:"In the order they were taken."`
	Cut         int            `json:"cut,omitempty" doc:"So many further steps were not kept."`
	Before      []byte         `json:"before,omitempty" doc:"The frame's first bytes as it came in, at most 192."`
	After       []byte         `json:"after,omitempty" doc:"The frame's first bytes as it left, at most 192."`
}

// TraceSummary is what a tracing session saw.
type TraceSummary struct {
	Packets uint64 `json:"packets"`
	Lost    uint64 `json:"lost" doc:"Matching packets that nobody was told of, because they came faster than they were read."`
}

// TraceEnd is the last message of a tracing session that was not broken off.
type TraceEnd struct {
	TraceSummary
	Reason string `json:"reason" enum:"count,timeout,stopped" doc:"stopped: the node stops, or leaves its cluster."`
}

type traceInput struct {
	Client  string `query:"client" doc:"Packets of this client: an address, address:port or prefix. Required without a service."`
	Service string `query:"service" doc:"Packets of this service. Required without a client."`
	Count   int    `query:"count" default:"1000" minimum:"1" maximum:"100000" doc:"End after so many packets."`
	Timeout string `query:"timeout" default:"30s" doc:"End after this time, at most 10m."`
}

func (s *server) traceRoutes() {
	o := s.operation(op{
		method: http.MethodGet, path: tracePath, id: "trace-packets", tag: "flows", summary: "Trace packets through this node's data plane",
		text: "Server-sent events: `trace` (a TraceEvent) for each matching packet, `heartbeat` every five seconds, and `end` (a TraceEnd). " +
			"It shows what is in packets, so it asks for the token as a write does. One session at a time on a node.",
	})
	o.Responses = streamResponses("Messages trace, heartbeat, problem and end.")
	o.Responses["200"].Content["text/event-stream"].Schema = &huma.Schema{OneOf: []*huma.Schema{
		s.schemas.Schema(reflect.TypeFor[TraceEvent](), true, "TraceEvent"),
		s.schemas.Schema(reflect.TypeFor[TraceEnd](), true, "TraceEnd"),
	}}
	huma.Register(s.api, o, func(_ context.Context, in *traceInput) (*huma.StreamResponse, error) {
		filter, timeout, err := in.read()
		if err != nil {
			return nil, NewProblem(err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			t := &tracing{server: s, w: w, r: r, left: in.Count}
			t.run(filter, timeout)
		}}, nil
	})
}

// read turns what was asked for into a filter and a time.
func (in *traceInput) read() (TraceFilter, time.Duration, error) {
	var client FlowFilter
	if err := client.SetClient(in.Client); err != nil {
		return TraceFilter{}, 0, err
	}
	if in.Client == "" && in.Service == "" {
		return TraceFilter{}, 0, fmt.Errorf("client or service is needed: %w", fsm.ErrInvalid)
	}
	timeout, err := time.ParseDuration(in.Timeout)
	if err != nil || timeout <= 0 || timeout > MaxTraceTimeout {
		return TraceFilter{}, 0, fmt.Errorf("timeout %q: want a time like 30s, at most %s: %w", in.Timeout, MaxTraceTimeout, fsm.ErrInvalid)
	}
	return TraceFilter{Client: client.Client, ClientPort: client.ClientPort, Service: in.Service}, timeout, nil
}

// errTraceFull ends a session that has told as many packets as it was asked for.
var errTraceFull = errors.New("as many packets as were asked for")

// tracing answers one request.
type tracing struct {
	*server
	w      http.ResponseWriter
	r      *http.Request
	cancel context.CancelFunc
	left   int // packets still to be told

	mu     sync.Mutex // the heart beats beside the packets
	stream *eventStream
	told   bool // that there is no stream to be had
}

func (t *tracing) run(filter TraceFilter, timeout time.Duration) {
	if t.r.Method == http.MethodHead {
		t.streams.begin(t.w, t.r)
		return
	}
	timed, cancel := context.WithTimeout(t.r.Context(), timeout)
	defer cancel()
	t.cancel = cancel
	group, ctx := errgroup.WithContext(timed)
	var summary TraceSummary
	group.Go(func() (err error) {
		defer cancel()
		summary, err = t.Backend.Trace(ctx, filter, t.begin, t.packet)
		return err
	})
	group.Go(func() error { return t.beat(ctx) })
	err := group.Wait()
	reason := "stopped"
	switch {
	case errors.Is(err, errTraceFull):
		reason, err = "count", nil
	case errors.Is(timed.Err(), context.DeadlineExceeded):
		reason = "timeout"
	}
	t.end(TraceEnd{TraceSummary: summary, Reason: reason}, err)
}

// begin is called when packets are being traced.
func (t *tracing) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stream = t.streams.begin(t.w, t.r); t.stream == nil {
		t.told = true
		t.cancel()
		return
	}
	_ = t.stream.heartbeat(time.Now()) // the first packet will show, too, that the client is gone
}

func (t *tracing) packet(e TraceEvent) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stream == nil {
		return context.Canceled
	}
	if err := t.stream.sendJSON("trace", "", e); err != nil {
		return err
	}
	if t.left--; t.left <= 0 {
		return errTraceFull
	}
	return nil
}

// beat shows the client that the session lives, and the session that the client does.
func (t *tracing) beat(ctx context.Context) error {
	for wait(ctx, heartbeatInterval) {
		if err := t.heartbeat(); err != nil {
			return err
		}
	}
	return nil
}

func (t *tracing) heartbeat() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stream == nil {
		return nil
	}
	return t.stream.heartbeat(time.Now())
}

// end says how it ended, if anybody is there to hear it.
func (t *tracing) end(end TraceEnd, err error) {
	switch {
	case t.told:
	case t.stream == nil && err != nil:
		NewProblem(err).write(t.w)
	case t.stream == nil: // the node stops
		NewProblem(context.Canceled).write(t.w)
	default:
		defer t.stream.end()
		if err != nil && t.r.Context().Err() == nil {
			_ = t.stream.sendJSON("problem", "", NewProblem(err)) // the last word either way
			return
		}
		_ = t.stream.sendJSON("end", "", end) // the client may have gone
	}
}
