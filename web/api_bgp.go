package web

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"reflect"

	"pontoon/fsm"
)

const dryRunText = "With dry_run nothing changes, and the answer says which sessions the change would add, reset and remove, and why."

type peerPath struct {
	Address netip.Addr `path:"address" doc:"The peer."`
	Node    fsm.NodeID `query:"node" doc:"The entry of this node; the one for all nodes when left out."`
}

func (s *server) bgpRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/bgp", id: "get-bgp", tag: "bgp", summary: "Show the settings of the BGP speakers",
	}, func(context.Context, *struct{}) (*tagged[BGPSettings], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		state := s.Backend.State()
		return &tagged[BGPSettings]{ETag: etag(state, fsm.PutBGP{}), Body: bgpSettings(state)}, nil
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/bgp", id: "put-bgp", tag: "bgp",
		summary: "Replace the settings of the BGP speakers", body: reflect.TypeFor[fsm.BGP](), text: dryRunText,
	}, func(ctx context.Context, in *struct {
		Precondition
		DryRun bool `query:"dry_run"`
		Body   json.RawMessage
	},
	) (*answer[BGPWritten], error) {
		b, err := decodeWithout[fsm.BGP](in.Body, "speakers")
		if err != nil {
			return nil, err
		}
		return s.writeBGP(ctx, fsm.PutBGP{BGP: b}, in.DryRun, in.Precondition)
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/bgp/routes", id: "list-bgp-routes", tag: "bgp",
		summary: "List the routes this node advertises or has received", text: "One entry for each prefix and peer.",
	}, s.listRoutes)
	s.bgpPeerRoutes()
}

func (s *server) bgpPeerRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/bgp/peers", id: "list-bgp-peers", tag: "bgp",
		summary: "List the BGP peers, with the sessions of the node that answers",
		text:    "A password is shown as \"" + fsm.KeepPassword + "\".",
	}, func(ctx context.Context, _ *struct{}) (*answer[[]BGPPeerStatus], error) {
		list, err := s.peers(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[[]BGPPeerStatus]{Body: list}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/bgp/peers/{address}", id: "get-bgp-peer", tag: "bgp", summary: "Show one BGP peer",
	}, func(ctx context.Context, in *peerPath) (*tagged[BGPPeerStatus], error) {
		tag := etag(s.Backend.State(), fsm.PutBGPPeer{Peer: fsm.BGPPeer{Address: in.Address, Node: in.Node}})
		list, err := s.peers(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			if p.Address == in.Address.Unmap() && p.Node == in.Node {
				return &tagged[BGPPeerStatus]{ETag: tag, Body: p}, nil
			}
		}
		return nil, missing("bgp peer", in.Address.String())
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/bgp/peers/{address}", id: "put-bgp-peer", tag: "bgp",
		summary: "Create or replace a BGP peer", body: reflect.TypeFor[fsm.BGPPeer](),
		text: "The password \"" + fsm.KeepPassword + "\" stands for the one that is there, so what GET answers can be sent back. " + dryRunText,
	}, s.putPeer)
	handle(s, op{
		method: http.MethodDelete, path: "/v1/bgp/peers/{address}", id: "delete-bgp-peer", tag: "bgp",
		summary: "Delete a BGP peer", text: "Its sessions end. " + dryRunText,
	}, func(ctx context.Context, in *struct {
		Address netip.Addr `path:"address" doc:"The peer."`
		Node    fsm.NodeID `query:"node" doc:"The entry of this node; the one for all nodes when left out."`
		DryRun  bool       `query:"dry_run"`
	},
	) (*answer[BGPWritten], error) {
		return s.writeBGP(ctx, fsm.DeleteBGPPeer{Address: in.Address, Node: in.Node}, in.DryRun, Precondition{})
	})
}

// peers joins what is configured with what is.
func (s *server) peers(ctx context.Context) ([]BGPPeerStatus, error) {
	st, err := s.readStatus(ctx)
	if err != nil {
		return nil, err
	}
	return peerStatuses(s.Backend.State(), st.Self, st.BGP), nil
}

type putPeerInput struct {
	Precondition
	Address netip.Addr `path:"address" doc:"The peer."`
	Node    fsm.NodeID `query:"node" doc:"The entry of this node; in the body it means the same. The one for all nodes when left out of both."`
	DryRun  bool       `query:"dry_run"`
	Body    json.RawMessage
}

func (s *server) putPeer(ctx context.Context, in *putPeerInput) (*answer[BGPWritten], error) {
	p, err := decodeWithout[fsm.BGPPeer](in.Body, "session")
	if err != nil {
		return nil, err
	}
	if p.Address.IsValid() && p.Address != in.Address {
		return nil, samePath("address", in.Address.String(), p.Address.String())
	}
	if in.Node != "" {
		if err := samePath("node", string(in.Node), string(p.Node)); err != nil {
			return nil, err
		}
		p.Node = in.Node
	}
	p.Address = in.Address
	return s.writeBGP(ctx, fsm.PutBGPPeer{Peer: p}, in.DryRun, in.Precondition)
}

// writeBGP commits a change, or only says what it would do to sessions.
func (s *server) writeBGP(ctx context.Context, cmd fsm.Command, dryRun bool, p Precondition) (*answer[BGPWritten], error) {
	if err := s.inCluster(); err != nil {
		return nil, err
	}
	before := s.Backend.State()
	after, err := before.Apply(before.Index()+1, cmd)
	out := &answer[BGPWritten]{Body: BGPWritten{DryRun: dryRun, Sessions: fsm.SessionChanges(before, after)}}
	if dryRun {
		return out, err
	}
	// A refusal by what this node knows may be out of date: the leader's word counts.
	w, err := s.proposeIf(ctx, cmd, p)
	if err != nil {
		return nil, err
	}
	out.Body.Index = w.Body.Index
	return out, nil
}

func (s *server) listRoutes(ctx context.Context, in *struct {
	Direction BGPDirection `query:"direction" default:"advertised" enum:"advertised,received"`
},
) (*answer[[]BGPRoute], error) {
	if err := s.inCluster(); err != nil {
		return nil, err
	}
	routes, err := s.Backend.BGPRoutes(ctx, in.Direction)
	if err != nil {
		return nil, err
	}
	state := s.Backend.State()
	for i := range routes {
		routes[i].complete(state)
	}
	return &answer[[]BGPRoute]{Body: notNil(routes)}, nil
}

// decodeWithout reads a body whose key without is only for readers: what GET
// answers can be sent back.
func decodeWithout[T any](body json.RawMessage, without ...string) (T, error) {
	var none T
	keys, err := decode[map[string]json.RawMessage](body)
	if err != nil {
		return none, err
	}
	for _, key := range without {
		delete(keys, key)
	}
	rest, err := json.Marshal(keys)
	if err != nil {
		return none, errors.Join(err, fsm.ErrInvalid)
	}
	return decode[T](rest)
}
