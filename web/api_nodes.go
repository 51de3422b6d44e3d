package web

import (
	"context"
	"fmt"
	"net/http"

	"pontoon/fsm"
)

type nodePath struct {
	Name string `path:"name" doc:"Name of the node."`
}

func (s *server) nodeRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/nodes", id: "list-nodes", tag: "nodes", summary: "List the members",
	}, func(ctx context.Context, _ *struct{}) (*answer[[]NodeStatus], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[[]NodeStatus]{Body: st.Nodes}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/bfd", id: "list-bfd", tag: "nodes", summary: "List the watched paths from this node to the others",
	}, func(ctx context.Context, _ *struct{}) (*answer[[]BFDSession], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[[]BFDSession]{Body: st.BFD}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/nodes/{name}", id: "get-node", tag: "nodes", summary: "Show one member",
	}, func(ctx context.Context, in *nodePath) (*answer[NodeStatus], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		for _, n := range st.Nodes {
			if n.Name == fsm.NodeID(in.Name) {
				return &answer[NodeStatus]{Body: n}, nil
			}
		}
		return nil, missing("node", in.Name)
	})
	handle(s, op{
		method: http.MethodPost, path: "/v1/nodes/{name}/drain", id: "drain-node", tag: "nodes",
		summary: "Ask a node to own nothing", text: "Its instances move to others; it stays a member and goes on voting. " +
			"Refused (conflict) while no other node holds all of its connections: ask again, or force it.",
	}, func(ctx context.Context, in *struct {
		Name  string `path:"name" doc:"Name of the node."`
		Force bool   `query:"force" doc:"Also when connections are lost by it."`
	},
	) (*written, error) {
		if !in.Force {
			if err := s.Backend.State().HandOver(fsm.NodeID(in.Name)); err != nil {
				return nil, err
			}
		}
		return s.propose(ctx, fsm.DrainNode{Node: fsm.NodeID(in.Name), Draining: true})
	})
	handle(s, op{
		method: http.MethodPost, path: "/v1/nodes/{name}/resume", id: "resume-node", tag: "nodes", summary: "Take a drain back",
	}, func(ctx context.Context, in *nodePath) (*written, error) {
		return s.propose(ctx, fsm.DrainNode{Node: fsm.NodeID(in.Name)})
	})
	handle(s, op{
		method: http.MethodDelete, path: "/v1/nodes/{name}", id: "remove-node", tag: "nodes",
		summary: "Remove a member that will not come back",
		text:    "A member that works should leave by itself: `pontoon leave`.",
	}, func(ctx context.Context, in *struct {
		Name  string `path:"name" doc:"Name of the node."`
		Force bool   `query:"force" doc:"Also the last voter."`
	},
	) (*written, error) {
		return s.propose(ctx, fsm.RemoveNode{Node: fsm.NodeID(in.Name), Force: in.Force})
	})
}

// missing is the error of a GET for what is not there.
func missing(what, name string) error {
	return fmt.Errorf("%s %q: %w", what, name, fsm.ErrNotFound)
}
