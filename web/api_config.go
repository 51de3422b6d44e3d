package web

import (
	"cmp"
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
		return &answer[[]InstanceStatus]{Body: InstanceStatuses(s.Backend.State())}, nil
	})
	handle(s, op{
		method: http.MethodGet, path: "/v1/instances/{name}", id: "get-instance", tag: "instances", summary: "Show one instance",
	}, func(_ context.Context, in *instancePath) (*tagged[InstanceStatus], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		state := s.Backend.State()
		for _, i := range InstanceStatuses(state) {
			if i.Name == in.Name {
				return &tagged[InstanceStatus]{ETag: etag(state, fsm.PutInstance{Name: in.Name}), Body: i}, nil
			}
		}
		return nil, missing("instance", in.Name)
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/instances/{name}", id: "put-instance", tag: "instances",
		summary: "Create an instance, or replace its priorities and settings",
		text: "The first master of a new one is, among the eligible nodes with the highest priority for it, the one that is master of the fewest. Priorities never move an instance whose master stays eligible. With one of the settings (kind, announce_policy, next_hops, " +
			"as_prepend, communities) all of them are replaced; without any, an instance keeps those it has.",
	}, func(ctx context.Context, in *struct {
		Precondition
		Name string `path:"name" doc:"Name of the instance."`
		Body InstanceRequest
	},
	) (*written, error) {
		if err := samePath("name", in.Name, in.Body.Name); err != nil {
			return nil, err
		}
		return s.proposeIf(ctx, s.instanceCommand(ctx, in.Name, in.Body), in.Precondition)
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

// instanceCommand leaves settings out that are, and were, the defaults: members
// that run an older version can then read the command. For the same reason the first
// master of a new instance is chosen by the load only where all of them know of that.
func (s *server) instanceCommand(ctx context.Context, name string, in InstanceRequest) fsm.PutInstance {
	cmd := fsm.PutInstance{Name: name, Priorities: in.Priorities}
	wanted := in.InstanceSettings
	given := wanted.Kind != "" || wanted.AnnouncePolicy != "" || wanted.NextHops != nil || wanted.ASPrepend || wanted.Communities != nil
	old, exists := s.Backend.State().Instance(name)
	cmd.Spread = !exists && s.Backend.Reads(ctx, fsm.VersionOf(fsm.PutInstance{Spread: true}))
	if !given || wanted.plain() && SettingsOf(old).plain() {
		return cmd
	}
	cmd.Kind, cmd.AnnouncePolicy = cmp.Or(wanted.Kind, fsm.InstanceBackup), wanted.AnnouncePolicy
	cmd.NextHops, cmd.ASPrepend, cmd.Communities = wanted.NextHops, wanted.ASPrepend, wanted.Communities
	return cmd
}

// plain says whether all settings are the defaults.
func (s InstanceSettings) plain() bool {
	return cmp.Or(s.Kind, fsm.InstanceBackup) == fsm.InstanceBackup && cmp.Or(s.AnnouncePolicy, fsm.PolicyRanked) == fsm.PolicyRanked &&
		len(s.NextHops) == 0 && !s.ASPrepend && len(s.Communities) == 0
}

// InstanceStatuses are the instances with their addresses and the number of their
// services, sorted by name; never nil.
func InstanceStatuses(state *fsm.State) []InstanceStatus {
	out := []InstanceStatus{}
	at := map[string]int{}
	for _, i := range state.Instances() {
		at[i.Name] = len(out)
		out = append(out, InstanceStatus{
			Name: i.Name, Priorities: i.Priorities, InstanceSettings: SettingsOf(i), Assignment: i.Assignment, VIPs: []netip.Addr{},
		})
		out[at[i.Name]].Succession = notNil(i.Succession)
	}
	of := map[netip.Addr]int{}
	for _, v := range state.VIPs() {
		i := at[v.Instance] // it exists: the state holds to that
		of[v.Address], out[i].VIPs = i, append(out[i].VIPs, v.Address)
	}
	for _, svc := range state.Services() {
		out[of[svc.VIP]].Services++
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
	}, func(_ context.Context, in *vipPath) (*tagged[fsm.VIP], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		state := s.Backend.State()
		v, ok := state.VIP(in.Address)
		if !ok {
			return nil, missing("vip", in.Address.String())
		}
		return &tagged[fsm.VIP]{ETag: etag(state, fsm.PutVIP{VIP: v}), Body: v}, nil
	})
	handle(s, op{
		method: http.MethodPut, path: "/v1/vips/{address}", id: "put-vip", tag: "vips",
		summary: "Create or replace a VIP", body: reflect.TypeFor[fsm.VIP](),
	}, func(ctx context.Context, in *struct {
		Precondition
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
		v.Pool, v.Share = "", "" // the cluster keeps what it has said
		return s.proposeIf(ctx, fsm.PutVIP{VIP: v}, in.Precondition)
	})
	handle(s, op{
		method: http.MethodDelete, path: "/v1/vips/{address}", id: "delete-vip", tag: "vips",
		summary: "Delete a VIP that no service uses",
	}, func(ctx context.Context, in *vipPath) (*written, error) {
		return s.propose(ctx, fsm.DeleteVIP{Address: in.Address})
	})
}
