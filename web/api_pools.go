package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strings"

	"pontoon/fsm"
)

type poolPath struct {
	Name string `path:"name" doc:"Name of the pool."`
}

type reservationPath struct {
	Address netip.Addr `path:"address" doc:"An address that a pool hands out."`
}

func (s *server) poolRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/pools", id: "list-pools", tag: "pools", summary: "List the address pools, and what has become of their addresses",
	}, func(context.Context, *struct{}) (*answer[[]PoolStatus], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		return &answer[[]PoolStatus]{Body: PoolStatuses(s.Backend.State())}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/pools/{name}", id: "get-pool", tag: "pools", summary: "Show one address pool",
	}, func(_ context.Context, in *poolPath) (*tagged[PoolStatus], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		state := s.Backend.State()
		p, ok := state.Pool(in.Name)
		if !ok {
			return nil, missing("pool", in.Name)
		}
		return &tagged[PoolStatus]{
			ETag: etag(state, fsm.PutPool{Pool: fsm.Pool{Name: p.Name}}), Body: PoolStatus{Pool: p, PoolUse: state.PoolUse(p.Name)},
		}, nil
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/pools/{name}", id: "put-pool", tag: "pools",
		summary: "Create or replace an address pool", body: reflect.TypeFor[fsm.Pool](),
		text: "Services with \"vip\": \"auto\" get their address from it. Without the key reservations a pool keeps those it has. VIPs it has " +
			"handed out stay as they are; it cannot lose their addresses. VIPs that were made by hand count as used. Other addresses that are new to it must be nobody's: those of nodes, endpoints, BGP " +
			"peers and other pools are refused (409, in_use), and so are addresses of the nodes' links, and where their routes lead; " +
			"notes in the answer name the nodes that could not be asked.",
	}, s.putPool)
	handle(s, op{
		method: http.MethodDelete, path: "/v1/pools/{name}", id: "delete-pool", tag: "pools",
		summary: "Delete an address pool of which nothing is handed out",
	}, func(ctx context.Context, in *poolPath) (*written, error) {
		return s.propose(ctx, fsm.DeletePool{Name: in.Name})
	})
	s.reservationRoutes()
}

func (s *server) reservationRoutes() {
	handle(s, op{
		method: http.MethodPut, path: "/v1/reservations/{address}", id: "put-reservation", tag: "pools",
		summary: "Keep an address of a pool back, for one service or for nobody",
	}, func(ctx context.Context, in *struct {
		Address netip.Addr `path:"address" doc:"An address that a pool hands out."`
		Body    ReservationRequest
	},
	) (*written, error) {
		if at := in.Body.Address; at.IsValid() && at != in.Address {
			return nil, samePath("address", in.Address.String(), at.String())
		}
		return s.propose(ctx, fsm.ReserveAddress{Address: in.Address, Service: in.Body.Service})
	})
	handle(s, op{
		method: http.MethodDelete, path: "/v1/reservations/{address}", id: "delete-reservation", tag: "pools",
		summary: "Let a pool hand an address out again",
	}, func(ctx context.Context, in *reservationPath) (*written, error) {
		return s.propose(ctx, fsm.UnreserveAddress{Address: in.Address})
	})
}

// PoolStatuses are the pools with what has become of their addresses, sorted by
// name; never nil.
func PoolStatuses(state *fsm.State) []PoolStatus {
	out := []PoolStatus{}
	for _, p := range state.Pools() {
		out = append(out, PoolStatus{Pool: p, PoolUse: state.PoolUse(p.Name)})
	}
	return out
}

// PoolBriefs are the pools with how many of their addresses are left, sorted by name;
// never nil.
func PoolBriefs(state *fsm.State) []PoolBrief {
	out := []PoolBrief{}
	counts := state.PoolCounts()
	for i, p := range state.Pools() {
		p.Reservations = nil
		out = append(out, PoolBrief{Pool: p, PoolCounts: counts[i]})
	}
	return out
}

// poolRuntime are the keys that GET adds to a pool, so that its answer can be sent
// back.
var poolRuntime = []string{"size", "used", "reserved", "free", "allocations", "others"}

func readPool(name string, body json.RawMessage) (fsm.PutPool, error) {
	keys, err := decode[map[string]json.RawMessage](body)
	if err != nil {
		return fsm.PutPool{}, err
	}
	_, reservations := keys["reservations"]
	p, err := decodeWithout[fsm.Pool](body, poolRuntime...)
	if err != nil {
		return fsm.PutPool{}, err
	}
	if err := samePath("name", name, p.Name); err != nil {
		return fsm.PutPool{}, err
	}
	p.Name = name
	return fsm.PutPool{Pool: p, KeepReservations: !reservations}, nil
}

// withoutAuto takes the wish for an address of a pool out of the body of a service:
// "vip": "auto" or "auto:POOL", and "share". It returns nil where an address is given.
func withoutAuto(body json.RawMessage) (json.RawMessage, *fsm.AutoVIP, error) {
	keys, err := decode[map[string]json.RawMessage](body)
	if err != nil {
		return nil, nil, err
	}
	var text, share string
	if at, ok := keys["share"]; ok {
		if share, err = decode[string](at); err != nil {
			return nil, nil, err
		}
		delete(keys, "share")
	}
	if at, ok := keys["vip"]; ok && json.Unmarshal(at, &text) != nil {
		return body, nil, nil // no text: refused with the rest
	}
	want, auto := ParseAutoVIP(text)
	if !auto {
		if share != "" {
			return nil, nil, refusef(fsm.ErrInvalid, "share %q goes with an address from a pool: give vip as \"auto\" or \"auto:POOL\", or leave it out", share)
		}
		return body, nil, addressOrWord(text)
	}
	delete(keys, "vip")
	want.Share = share
	rest, err := json.Marshal(keys)
	return rest, &want, err
}

// addressOrWord refuses what the schema would, if there were no words for a VIP.
func addressOrWord(vip string) error {
	if _, err := netip.ParseAddr(vip); vip == "" || err == nil {
		return nil
	}
	p := statusProblem(http.StatusUnprocessableEntity, fmt.Sprintf("vip %q: want an IP address, or \"auto\" or \"auto:POOL\" for one of a pool", vip))
	p.Code, p.Errors = codeInvalid, []ProblemField{{Location: "body.vip", Message: p.Detail}}
	return p
}

// ParseAutoVIP reads "auto" and "auto:POOL".
func ParseAutoVIP(s string) (fsm.AutoVIP, bool) {
	word, pool, named := strings.Cut(s, ":")
	return fsm.AutoVIP{Pool: pool}, word == "auto" && named == (pool != "")
}
