package web

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"time"

	"pontoon/fsm"
)

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
	}, s.getService)
	handle(s, op{
		method: http.MethodPut, path: "/v1/services/{name}", id: "put-service", tag: "services",
		summary: "Create or replace a service", body: reflect.TypeFor[fsm.Service](),
		text: "With create, a VIP that does not exist yet is created with the service, in one step: of kind service, announced " +
			"by l2 (by bgp in an instance of kind ecmp), in the instance that is asked for or in default. A VIP that exists is used as it is; if it is in another " +
			"instance than the one asked for, the request is refused (409, in_use). With \"vip\": \"auto\" or \"auto:POOL\" the service gets an address of a " +
			"pool, and gives it back when it is deleted; with share too, all services of the pool with that share are on the same one.",
	}, s.putService)
	handle(s, op{
		method: http.MethodDelete, path: "/v1/services/{name}", id: "delete-service", tag: "services", summary: "Delete a service",
		text: "New connections to it are refused; those it has go on until they end.",
	}, func(ctx context.Context, in *servicePath) (*written, error) {
		return s.propose(ctx, fsm.DeleteService{Name: in.Name})
	})
	handle(s, op{
		method: http.MethodPost, path: "/v1/services/{name}/endpoints/{address}/drain", id: "drain-endpoint",
		tag: "services", summary: "Set one endpoint to drain",
		text: "It gets no new flows. It keeps those it has until they end or the timeout is over; then they get what the service's " +
			"on_remove says. For an endpoint that is draining already the time begins anew.",
	}, s.drainEndpoint)
	handle(s, op{
		method: http.MethodPost, path: "/v1/services/{name}/endpoints/{address}/resume", id: "resume-endpoint",
		tag: "services", summary: "Set one endpoint to up", text: "It gets new flows again.",
	}, func(ctx context.Context, in *endpointPath) (*written, error) {
		return s.propose(ctx, fsm.SetEndpointAdmin{Service: in.Name, Endpoint: in.Address, Admin: fsm.AdminUp})
	})
}

func (s *server) getService(ctx context.Context, in *servicePath) (*tagged[ServiceStatus], error) {
	tag := etag(s.Backend.State(), fsm.PutService{Service: fsm.Service{Name: in.Name}})
	st, err := s.readStatus(ctx)
	if err != nil {
		return nil, err
	}
	for _, svc := range st.Services {
		if svc.Name == in.Name {
			return &tagged[ServiceStatus]{ETag: tag, Body: svc}, nil
		}
	}
	return nil, missing("service", in.Name)
}

type drainInput struct {
	Name    string         `path:"name" doc:"Name of the service."`
	Address netip.AddrPort `path:"address" doc:"The endpoint, address:port."`
	Timeout string         `query:"timeout" example:"10m" doc:"How long it keeps its flows; 0s is without end. Default: the service's drain_timeout."`
}

// drainEndpoint works out when the drain ends: replicated state knows no clock.
func (s *server) drainEndpoint(ctx context.Context, in *drainInput) (*written, error) {
	if err := s.inCluster(); err != nil {
		return nil, err
	}
	svc, _ := s.Backend.State().Service(in.Name) // one that does not exist is refused with the command
	if in.Timeout != "" {
		d, err := time.ParseDuration(in.Timeout)
		if limit := time.Duration(fsm.MaxDrainTimeout); err != nil || d < 0 || d > limit {
			return nil, refusef(fsm.ErrInvalid, "timeout %q: want a duration with a unit, 0s to %s, like \"90s\" or \"10m\"", in.Timeout, limit)
		}
		svc.DrainTimeout = fsm.Duration(d)
	}
	return s.propose(ctx, fsm.SetEndpointAdmin{
		Service: in.Name, Endpoint: in.Address, Admin: fsm.AdminDrain, Until: svc.Deadline(time.Now()),
	})
}

type putServiceInput struct {
	Precondition
	Name     string `path:"name" doc:"Name of the service."`
	Create   bool   `query:"create" doc:"Refuse a service that exists already, and create its VIP if that does not exist."`
	Instance string `query:"instance" doc:"The instance the VIP has to be in; any when left out. In the body it means the same."`
	Body     json.RawMessage
}

func (s *server) putService(ctx context.Context, in *putServiceInput) (*answer[ServiceWritten], error) {
	body, instance, err := withoutRuntime(in.Body)
	if err != nil {
		return nil, err
	}
	body, auto, err := withoutAuto(body)
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
	if in.Instance != "" && instance != "" && instance != in.Instance {
		return nil, fmt.Errorf("instance: the body says %q, the query %q: make them the same or leave one out: %w", instance, in.Instance, fsm.ErrInvalid)
	}
	svc.Name, svc.ID = in.Name, 0 // the cluster keeps or gives the id
	svc.Probe = s.probeOf(ctx, svc)
	setDeadlines(&svc, time.Now())
	put := serviceWrite{fsm.PutService{Service: svc, Create: in.Create, Auto: auto}, cmp.Or(in.Instance, instance)}
	cmd, err := s.serviceCommand(ctx, put)
	if err != nil {
		return nil, err
	}
	w, err := s.proposeIf(ctx, cmd, in.Precondition)
	if err != nil {
		return nil, err
	}
	out := &answer[ServiceWritten]{Body: ServiceWritten{WriteResult: w.Body}}
	state := s.Backend.State()
	if now, ok := state.Service(svc.Name); ok && auto != nil {
		svc.VIP = now.VIP
	}
	v, there := state.VIP(svc.VIP)
	if _, both := cmd.(fsm.Batch); there && (both || auto != nil) {
		out.Body.VIP = &v
	}
	if is, ok := state.Service(svc.Name); ok {
		if in, _ := state.Instance(v.Instance); there {
			out.Body.Notes = choiceNotes(is, in.Name, in.Kind)
		}
	}
	return out, nil
}

// probeOf is the probe of a service that is written. Of one that says nothing about
// it, or not of what type it is, it is the default for the protocol; while a member
// runs a version that knows no probes, one of which nobody spoke is not probed.
func (s *server) probeOf(ctx context.Context, svc fsm.Service) fsm.Probe {
	p := svc.Probe
	if p.Type == "" && (p != fsm.Probe{} || s.Backend.Reads(ctx, fsm.VersionOf(fsm.SetHealth{}))) {
		p.Type = fsm.DefaultProbe(svc.Protocol).Type
	}
	return p
}

// setDeadlines says when the endpoints end to drain that svc drains. Those that
// drain already keep what they have, see fsm.PutService.
func setDeadlines(svc *fsm.Service, now time.Time) {
	for i, e := range svc.Endpoints {
		svc.Endpoints[i].DrainUntil = time.Time{}
		if e.Admin == fsm.AdminDrain {
			svc.Endpoints[i].DrainUntil = svc.Deadline(now)
		}
	}
}

// serviceCommand decides what to commit for a write of a service. A decision
// that rests on what this node knows of VIPs and instances, other than to use a
// VIP that is there, is taken on a state that is certainly not old: otherwise
// a follower that lags could move a VIP that was created a moment ago.
func (s *server) serviceCommand(ctx context.Context, w serviceWrite) (fsm.Command, error) {
	if err := s.inCluster(); err != nil {
		return nil, err
	}
	cmd, err := w.command(s.Backend.State())
	if _, plain := cmd.(fsm.PutService); err == nil && plain {
		return cmd, nil
	}
	// A change of nothing that is committed and applied here: whatever was
	// committed before it is applied too.
	if _, err := s.propose(ctx, fsm.Batch{}); err != nil {
		return nil, err
	}
	return w.command(s.Backend.State())
}

// serviceWrite is a service that shall be written, and the instance its VIP has
// to be in; "" is any.
type serviceWrite struct {
	fsm.PutService
	instance string
}

// command is what has to be committed, given a state: the service alone, or
// its VIP with it. It refuses an instance that does not exist or is not that of
// the VIP (fsm.ErrInvalid, fsm.ErrInUse), and before it adds a VIP whatever
// else is wrong with the service, in the words of a command that is alone.
func (w serviceWrite) command(state *fsm.State) (fsm.Command, error) {
	if _, ok := state.Instance(w.instance); !ok && w.instance != "" {
		return nil, refusef(fsm.ErrInvalid, "instance %q does not exist: create it with `pontoon instance create`", w.instance)
	}
	if w.Auto != nil {
		return w.PutService, w.checkPool(state)
	}
	vip, exists := state.VIP(w.Service.VIP)
	switch {
	case exists && w.instance != "" && vip.Instance != w.instance:
		return nil, refusef(fsm.ErrInUse, "vip %s is in instance %s, not in %s: `%s` moves it, with every service on it",
			vip.Address, vip.Instance, w.instance, moveCommand(vip, w.instance))
	case exists || !w.Create:
		return w.PutService, nil
	}
	put := fsm.PutVIP{VIP: fsm.VIP{Address: w.Service.VIP, Instance: w.instance}}
	if in, _ := state.Instance(cmp.Or(w.instance, fsm.DefaultInstance)); in.Kind == fsm.InstanceECMP {
		put.VIP.Announce = fsm.AnnounceBGP // no one node could answer for it
	}
	with, err := state.Apply(state.Index()+1, put)
	switch {
	case errors.Is(err, fsm.ErrInUse):
		return nil, err // it is the address of something else
	case err != nil:
		return w.PutService, nil // no address for a VIP: refused with all else that is wrong
	}
	if err := with.Check(w.PutService); err != nil {
		return nil, err
	}
	return fsm.Batch{Commands: []fsm.Command{put, w.PutService}}, nil
}

// checkPool refuses an instance that is not the one the pool's addresses are in.
func (w serviceWrite) checkPool(state *fsm.State) error {
	if w.instance == "" {
		return nil
	}
	with, err := state.Apply(state.Index()+1, w.PutService)
	if err != nil {
		return nil // refused with all that is wrong
	}
	svc, _ := with.Service(w.Service.Name)
	if v, _ := with.VIP(svc.VIP); v.Instance != w.instance {
		return refusef(fsm.ErrInUse, "pool %s is for instance %s, not for %s: use another pool, or leave the instance out", v.Pool, v.Instance, w.instance)
	}
	return nil
}

// moveCommand is what to type to move a VIP and change nothing else of it.
func moveCommand(v fsm.VIP, instance string) string {
	cmd := fmt.Sprintf("pontoon vip create %s --instance %s", v.Address, instance)
	if v.Kind != fsm.VIPService {
		cmd += " --kind " + string(v.Kind)
	}
	if v.Interface != "" {
		cmd += " --interface " + v.Interface
	}
	if v.Announce != fsm.AnnounceL2 {
		cmd += " --announce " + string(v.Announce)
	}
	if v.OnQuorumLoss == fsm.QuorumHold {
		cmd += " --on-quorum-loss " + string(v.OnQuorumLoss)
	}
	if v.OnNoEndpoint == fsm.NoEndpointKeep {
		cmd += " --on-no-endpoint " + string(v.OnNoEndpoint)
	}
	return cmd
}

// endpointRuntime is what GET says of an endpoint beyond its configuration.
var endpointRuntime = []string{
	"health", "health_since", "health_error", "flapping", "share", "why_out",
	"latency_p50_ms", "latency_p99_ms", "flows", "drain_flows_left", "traffic",
}

// withoutRuntime takes out of a service what GET adds to it, so that its answer
// can be edited and sent back: fsm's own reading knows only what is replicated.
// The instance is returned: it is a wish as well as a report.
func withoutRuntime(body json.RawMessage) (rest json.RawMessage, instance string, err error) {
	svc, err := decode[map[string]json.RawMessage](body)
	if err != nil {
		return nil, "", err
	}
	if at, ok := svc["instance"]; ok {
		if instance, err = decode[string](at); err != nil {
			return nil, "", err
		}
	}
	delete(svc, "instance")
	delete(svc, "flows")
	delete(svc, "traffic")
	if list, ok := svc["endpoints"]; ok {
		endpoints, err := decode[[]map[string]json.RawMessage](list)
		if err != nil {
			return nil, "", err
		}
		for _, e := range endpoints {
			for _, key := range endpointRuntime {
				delete(e, key)
			}
		}
		if svc["endpoints"], err = json.Marshal(endpoints); err != nil {
			return nil, "", err
		}
	}
	rest, err = json.Marshal(svc)
	return rest, instance, err
}
