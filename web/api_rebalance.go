package web

import (
	"context"
	"net/http"

	"pontoon/fsm"
)

func (s *server) rebalanceRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/rebalance", id: "get-rebalance", tag: "instances",
		summary: "Tell which instances to move so that masters are spread evenly",
		text: "Nothing is moved: that is done with /v1/instances/{name}/move, one after the other. The list is empty when nothing can be gained. " +
			"Each instance belongs on an eligible node with the highest priority it has for any, and among equals no node has to be master of more than others.",
	}, func(context.Context, *struct{}) (*answer[[]fsm.Move], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		return &answer[[]fsm.Move]{Body: notNil(s.Backend.State().Rebalance())}, nil
	})
}
