package web

import (
	"context"
	"net/http"
)

// The most flows one answer lists, unless asked otherwise, and at all. The
// listing is built in memory: more would be felt by the node itself. The tags
// of listFlowsInput say the same.
const (
	DefaultFlowLimit = 1000
	MaxFlowLimit     = 100_000
)

type listFlowsInput struct {
	Service string `query:"service" doc:"Of this service only."`
	Client  string `query:"client" doc:"Of this client only: an address, address:port or prefix."`
	Limit   int    `query:"limit" default:"1000" minimum:"1" maximum:"100000" doc:"List at most so many."`
}

type flowsAnswer struct {
	Truncated string `header:"Pontoon-Truncated" doc:"true when there are more."`
	Body      []Flow
}

func (s *server) flowRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/flows", id: "list-flows", tag: "flows",
		summary: "List the connections in this node's flow table",
	}, s.listFlows)
	handle(s, op{
		method: http.MethodGet, path: "/v1/flows/count", id: "count-flows", tag: "flows", summary: "Count this node's flows",
	}, func(ctx context.Context, _ *struct{}) (*answer[FlowCounts], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[FlowCounts]{Body: st.Flows}, nil
	})
	handle(s, op{
		method: http.MethodDelete, path: "/v1/flows", id: "flush-flows", tag: "flows",
		summary: "Forget the flows of a service", text: "Its connections break. Use it when endpoints have lost theirs anyway.",
	}, func(ctx context.Context, in *struct {
		Service string `query:"service" required:"true" doc:"Name of the service."`
	},
	) (*answer[FlushResult], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		if _, ok := s.Backend.State().Service(in.Service); !ok {
			return nil, missing("service", in.Service)
		}
		n, err := s.Backend.FlushFlows(ctx, in.Service)
		if err != nil {
			return nil, err
		}
		return &answer[FlushResult]{Body: FlushResult{Flushed: n}}, nil
	})
}

func (s *server) listFlows(ctx context.Context, in *listFlowsInput) (*flowsAnswer, error) {
	f := FlowFilter{Service: in.Service, Limit: in.Limit + 1} // one more tells whether there are more
	if err := f.SetClient(in.Client); err != nil {
		return nil, err
	}
	flows, err := s.Backend.Flows(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &flowsAnswer{Body: notNil(flows)}
	if len(flows) > in.Limit {
		out.Body, out.Truncated = flows[:in.Limit], "true"
	}
	return out, nil
}
