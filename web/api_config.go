package web

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"

	"pontoon/fsm"
)

type instancePath struct {
	Name string `path:"name" doc:"Name of the instance."`
}

func (s *server) instanceRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/instances", id: "list-instances", tag: "instances", summary: "List the instances",
	}, func(_ context.Context, _ *struct{}) (*answer[[]InstanceStatus], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		state := s.Backend.State()
		out := []InstanceStatus{}
		for _, i := range state.Instances() {
			out = append(out, instanceStatus(state, i))
		}
		return &answer[[]InstanceStatus]{Body: out}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/instances/{name}", id: "get-instance", tag: "instances", summary: "Show one instance",
	}, func(_ context.Context, in *instancePath) (*answer[InstanceStatus], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		state := s.Backend.State()
		i, ok := state.Instance(in.Name)
		if !ok {
			return nil, missing("instance", in.Name)
		}
		return &answer[InstanceStatus]{Body: instanceStatus(state, i)}, nil
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/instances/{name}", id: "put-instance", tag: "instances",
		summary: "Create an instance, or replace its priorities", text: "Priorities never move an instance whose master stays eligible.",
	}, func(ctx context.Context, in *struct {
		Name string `path:"name" doc:"Name of the instance."`
		Body InstanceRequest
	},
	) (*written, error) {
		if err := samePath("name", in.Name, in.Body.Name); err != nil {
			return nil, err
		}
		return s.propose(ctx, fsm.PutInstance{Name: in.Name, Priorities: in.Body.Priorities})
	})
	handle(s, op{
		method: http.MethodDelete, path: "/v1/instances/{name}", id: "delete-instance", tag: "instances",
		summary: "Delete an instance that has no VIPs",
	}, func(ctx context.Context, in *instancePath) (*written, error) {
		return s.propose(ctx, fsm.DeleteInstance{Name: in.Name})
	})
	handle(s, op{
		method: http.MethodPost, path: "/v1/instances/{name}/move", id: "move-instance", tag: "instances",
		summary: "Give an instance another master",
	}, func(ctx context.Context, in *struct {
		Name string `path:"name" doc:"Name of the instance."`
		Body MoveRequest
	},
	) (*written, error) {
		return s.propose(ctx, fsm.MoveInstance{Name: in.Name, To: in.Body.To})
	})
}

// instanceStatus is an instance with its addresses.
func instanceStatus(state *fsm.State, i fsm.Instance) InstanceStatus {
	out := InstanceStatus{Name: i.Name, Priorities: i.Priorities, Assignment: i.Assignment, VIPs: []netip.Addr{}}
	out.Succession = notNil(out.Succession)
	for _, v := range state.VIPs() {
		if v.Instance == i.Name {
			out.VIPs = append(out.VIPs, v.Address)
		}
	}
	return out
}

type vipPath struct {
	Address netip.Addr `path:"address" doc:"The VIP."`
}

func (s *server) vipRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/vips", id: "list-vips", tag: "vips", summary: "List the VIPs",
	}, func(_ context.Context, _ *struct{}) (*answer[[]fsm.VIP], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		return &answer[[]fsm.VIP]{Body: notNil(s.Backend.State().VIPs())}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/vips/{address}", id: "get-vip", tag: "vips", summary: "Show one VIP",
	}, func(_ context.Context, in *vipPath) (*answer[fsm.VIP], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		v, ok := s.Backend.State().VIP(in.Address)
		if !ok {
			return nil, missing("vip", in.Address.String())
		}
		return &answer[fsm.VIP]{Body: v}, nil
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/vips/{address}", id: "put-vip", tag: "vips",
		summary: "Create or replace a VIP", body: reflect.TypeFor[fsm.VIP](),
	}, func(ctx context.Context, in *struct {
		Address netip.Addr `path:"address" doc:"The VIP."`
		Body    json.RawMessage
	},
	) (*written, error) {
		v, err := decode[fsm.VIP](in.Body)
		if err != nil {
			return nil, err
		}
		if v.Address.IsValid() && v.Address != in.Address {
			return nil, samePath("address", in.Address.String(), v.Address.String())
		}
		v.Address = in.Address
		return s.propose(ctx, fsm.PutVIP{VIP: v})
	})
	handle(s, op{
		method: http.MethodDelete, path: "/v1/vips/{address}", id: "delete-vip", tag: "vips",
		summary: "Delete a VIP that no service uses",
	}, func(ctx context.Context, in *vipPath) (*written, error) {
		return s.propose(ctx, fsm.DeleteVIP{Address: in.Address})
	})
}

type servicePath struct {
	Name string `path:"name" doc:"Name of the service."`
}

type endpointPath struct {
	Name    string         `path:"name" doc:"Name of the service."`
	Address netip.AddrPort `path:"address" doc:"The endpoint, address:port."`
}

func (s *server) serviceRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/services", id: "list-services", tag: "services",
		summary: "List the services, with the health and flows of their endpoints",
	}, func(ctx context.Context, _ *struct{}) (*answer[[]ServiceStatus], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[[]ServiceStatus]{Body: st.Services}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/services/{name}", id: "get-service", tag: "services", summary: "Show one service",
	}, func(ctx context.Context, in *servicePath) (*answer[ServiceStatus], error) {
		st, err := s.readStatus(ctx)
		if err != nil {
			return nil, err
		}
		for _, svc := range st.Services {
			if svc.Name == in.Name {
				return &answer[ServiceStatus]{Body: svc}, nil
			}
		}
		return nil, missing("service", in.Name)
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/services/{name}", id: "put-service", tag: "services",
		summary: "Create or replace a service", body: reflect.TypeFor[fsm.Service](),
	}, s.putService)
	handle(s, op{
		method: http.MethodDelete, path: "/v1/services/{name}", id: "delete-service", tag: "services", summary: "Delete a service",
	}, func(ctx context.Context, in *servicePath) (*written, error) {
		return s.propose(ctx, fsm.DeleteService{Name: in.Name})
	})
	for _, a := range []struct {
		verb, text string
		admin      fsm.AdminState
	}{
		{"drain", "It keeps its flows and gets no new ones.", fsm.AdminDrain},
		{"resume", "It gets new flows again.", fsm.AdminUp},
	} {
		handle(s, op{
			method: http.MethodPost, path: "/v1/services/{name}/endpoints/{address}/" + a.verb, id: a.verb + "-endpoint",
			tag: "services", summary: "Set one endpoint to " + string(a.admin), text: a.text,
		}, func(ctx context.Context, in *endpointPath) (*written, error) {
			return s.propose(ctx, fsm.SetEndpointAdmin{Service: in.Name, Endpoint: in.Address, Admin: a.admin})
		})
	}
}

type putServiceInput struct {
	Name   string `path:"name" doc:"Name of the service."`
	Create bool   `query:"create" doc:"Refuse a service that exists already."`
	Body   json.RawMessage
}

func (s *server) putService(ctx context.Context, in *putServiceInput) (*written, error) {
	body, err := withoutRuntime(in.Body)
	if err != nil {
		return nil, err
	}
	svc, err := decode[fsm.Service](body)
	if err != nil {
		return nil, err
	}
	if err := samePath("name", in.Name, svc.Name); err != nil {
		return nil, err
	}
	svc.Name, svc.ID = in.Name, 0 // the cluster keeps or gives the id
	return s.propose(ctx, fsm.PutService{Service: svc, Create: in.Create})
}

// withoutRuntime takes out of a service what GET adds to it, so that its answer
// can be edited and sent back: fsm's own reading knows only what is replicated.
func withoutRuntime(body json.RawMessage) (json.RawMessage, error) {
	svc, err := decode[map[string]json.RawMessage](body)
	if err != nil {
		return nil, err
	}
	delete(svc, "flows")
	if list, ok := svc["endpoints"]; ok {
		endpoints, err := decode[[]map[string]json.RawMessage](list)
		if err != nil {
			return nil, err
		}
		for _, e := range endpoints {
			delete(e, "health")
			delete(e, "flows")
		}
		if svc["endpoints"], err = json.Marshal(endpoints); err != nil {
			return nil, err
		}
	}
	return json.Marshal(svc)
}
