package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pontoon/fsm"
)

// Config is what a handler needs.
type Config struct {
	Backend  Backend             // required
	Ops      ClusterOps          // required
	Access   Access              // required, see AccessLevel
	Version  string              // shown by the page and the API; default "unknown"
	Registry prometheus.Gatherer // what /metrics shows; default: nothing
	Logger   *slog.Logger        // default: silent
}

// Validate tells everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	if c.Backend == nil {
		errs = append(errs, errors.New("web: no backend"))
	}
	if c.Ops == nil {
		errs = append(errs, errors.New("web: no cluster operations"))
	}
	return errors.Join(append(errs, c.Access.Validate())...)
}

// server is one handler's share of everything.
type server struct {
	Config
	mux     *http.ServeMux
	api     huma.API
	schemas huma.Registry
	streams streams
	status  statusCache
}

// NewHandler returns the API, the status page, the metrics and the health
// endpoints for one level of access. The handler is safe for concurrent use and
// starts nothing that outlives a request.
func NewHandler(cfg Config) (http.Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Version == "" {
		cfg.Version = "unknown"
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &server{Config: cfg, mux: http.NewServeMux()}
	s.status.read = s.readStatus
	s.schemas = newSchemas()
	s.api = humago.New(s.mux, humaConfig(cfg.Version, s.schemas))
	s.routes()
	if err := s.serveDocument(); err != nil {
		return nil, err
	}
	if err := s.servePage(); err != nil {
		return nil, err
	}
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Registry, promhttp.HandlerOpts{}))
	s.mux.HandleFunc("/", s.notFound)
	return guard(cfg.Access, s.mux), nil
}

// routes registers every operation of the API.
func (s *server) routes() {
	s.statusRoutes()
	s.nodeRoutes()
	s.instanceRoutes()
	s.vipRoutes()
	s.serviceRoutes()
	s.poolRoutes()
	s.rebalanceRoutes()
	s.bgpRoutes()
	s.flowRoutes()
	s.replicationRoutes()
	s.traceRoutes()
	s.eventRoutes()
	s.tokenRoutes()
	s.clusterRoutes()
}

// humaConfig is huma's, without its documentation page (it loads a script from
// elsewhere), its schema links and its own spelling of errors.
func humaConfig(version string, schemas huma.Registry) huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:   "Pontoon",
				Version: version,
				Description: "One cluster of layer-4 load balancers, seen and changed from any of its nodes. " +
					"Writes are linearizable and answer with their Raft index; errors are problem details (RFC 9457).",
			},
			Components: &huma.Components{
				Schemas: schemas,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "The API token."},
					"basic":  {Type: "http", Scheme: "basic", Description: "Any user; the password is the API token."},
				},
			},
			Security: []map[string][]string{{}, {"bearer": {}}, {"basic": {}}},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{asProblem},
	}
}

// op is one operation's head.
type op struct {
	method, path, id, tag, summary, text string
	body                                 reflect.Type // of a strict JSON body; nil without one, or where the input has its own
}

func (s *server) operation(o op) huma.Operation {
	h := huma.Operation{
		Method: o.method, Path: o.path, OperationID: o.id, Tags: []string{o.tag}, Summary: o.summary, Description: o.text,
		BodyReadTimeout: -1, // guard has read the body, see readBody
		MaxBodyBytes:    maxBody + 1,
	}
	if o.body != nil {
		h.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: s.schemas.Schema(o.body, true, o.body.Name())},
		}}
	}
	return h
}

// handle registers an operation whose errors become problems. What is our own
// fault is logged here, because the client may not be the one who can mend it.
func handle[I, O any](s *server, o op, do func(ctx context.Context, in *I) (*O, error)) {
	huma.Register(s.api, s.operation(o), func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, in)
		if err == nil {
			return out, nil
		}
		p := NewProblem(err)
		if p.Status == http.StatusInternalServerError {
			s.Logger.Error("api request failed", "op", o.id, "err", err)
		}
		return nil, p
	})
}

// document describes a route that huma does not serve itself.
func (s *server) document(o op, contentType, about string) {
	h := s.operation(o)
	h.Responses = map[string]*huma.Response{"200": {
		Description: about,
		Content:     map[string]*huma.MediaType{contentType: {}},
	}}
	s.api.OpenAPI().AddOperation(&h)
}

// serveDocument serves the OpenAPI document. Every other route is registered
// before it.
func (s *server) serveDocument() error {
	s.document(op{
		method: http.MethodGet, path: "/v1/openapi.json", id: "get-openapi", tag: "about", summary: "This document",
	}, "application/openapi+json", "OpenAPI 3.1")
	s.document(op{
		method: http.MethodGet, path: "/metrics", id: "get-metrics", tag: "about", summary: "Metrics of this node, for Prometheus",
	}, "text/plain", "Prometheus text format")
	s.document(op{
		method: http.MethodGet, path: "/", id: "get-page", tag: "about", summary: "The status page",
	}, "text/html", "A page for people")
	finishSchemas(s.schemas)
	doc, err := json.Marshal(s.api.OpenAPI())
	if err != nil {
		return fmt.Errorf("encode openapi document: %w", err)
	}
	s.mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(doc) // the client went away: nobody is left to tell
	})
	return nil
}

// notFound answers what no route matches, and tells a wrong path from a wrong
// method.
func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		probe := r.Clone(r.Context())
		probe.Method = m
		if _, pattern := s.mux.Handler(probe); pattern != "/" && pattern != "" {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 {
		statusProblem(http.StatusNotFound, fmt.Sprintf("nothing is at %s: see /v1/openapi.json", oneLine(r.URL.Path))).write(w)
		return
	}
	for _, m := range allowed {
		w.Header().Add("Allow", m)
	}
	statusProblem(http.StatusMethodNotAllowed, fmt.Sprintf("%s does not take %s", oneLine(r.URL.Path), r.Method)).write(w)
}

// answer carries one body.
type answer[T any] struct{ Body T }

// written answers a write.
type written struct{ Body WriteResult }

// inCluster refuses while this node is in no cluster.
func (s *server) inCluster() error {
	if s.Backend.State().Cluster().ID == "" {
		return ErrNoCluster
	}
	return nil
}

// propose sends a command through the log and answers with its index.
func (s *server) propose(ctx context.Context, cmd fsm.Command) (*written, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	index, err := s.Backend.Propose(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return &written{Body: WriteResult{Index: index}}, nil
}

// proposeTimeout is how long a write may wait for a leader and a majority.
const proposeTimeout = 10 * time.Second
