package web

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"pontoon/fsm"
)

// The life of a join token.
const (
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 30 * 24 * time.Hour
)

func (s *server) tokenRoutes() {
	handle(s, op{
		method: http.MethodGet, path: "/v1/tokens", id: "list-tokens", tag: "tokens",
		summary: "List the join tokens that are open", text: "Without their secrets, which nobody has any more.",
	}, func(_ context.Context, _ *struct{}) (*answer[[]TokenInfo], error) {
		if err := s.inCluster(); err != nil {
			return nil, err
		}
		now := time.Now()
		out := []TokenInfo{}
		for _, t := range s.Backend.State().Tokens() {
			out = append(out, TokenInfo{ID: t.ID, Role: t.Role, Expires: t.Expires, Expired: !now.Before(t.Expires)})
		}
		return &answer[[]TokenInfo]{Body: out}, nil
	})
	handle(s, op{
		method: http.MethodPost, path: "/v1/tokens", id: "create-token", tag: "tokens",
		summary: "Make a join token", text: "It is bound to a role, expires, and is used once. The answer holds its only copy.",
	}, s.createToken)
	handle(s, op{
		method: http.MethodDelete, path: "/v1/tokens/{id}", id: "revoke-token", tag: "tokens", summary: "Revoke a join token",
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" doc:"The token's id."`
	},
	) (*written, error) {
		return s.propose(ctx, fsm.RevokeToken{ID: in.ID})
	})
}

func (s *server) createToken(ctx context.Context, in *struct{ Body TokenRequest }) (*answer[TokenCreated], error) {
	if err := s.inCluster(); err != nil {
		return nil, err
	}
	role, ttl := in.Body.Role, time.Duration(in.Body.TTL)
	if role == "" {
		role = fsm.RoleLB
	}
	if role != fsm.RoleLB && role != fsm.RoleWitness {
		return nil, fmt.Errorf("role %q: want lb or witness: %w", role, fsm.ErrInvalid)
	}
	if ttl == 0 {
		ttl = defaultTokenTTL
	}
	if ttl < 0 || ttl > maxTokenTTL {
		return nil, fmt.Errorf("ttl %s: want more than 0 and at most %s: %w", ttl, maxTokenTTL, fsm.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	token, err := s.Ops.CreateToken(ctx, role, ttl)
	if err != nil {
		return nil, err
	}
	return &answer[TokenCreated]{Body: TokenCreated{Token: token}}, nil
}

func (s *server) clusterRoutes() {
	handle(s, op{
		method: http.MethodPost, path: opsPrefix + "init", id: "init-cluster", tag: "cluster",
		summary: "Make this node the first of a new cluster", text: "Only on the node's own socket.",
	}, func(ctx context.Context, _ *struct{}) (*answer[InitResult], error) {
		res, err := s.Ops.Init(ctx)
		if err != nil {
			return nil, err
		}
		return &answer[InitResult]{Body: res}, nil
	})
	handle(s, op{
		method: http.MethodPost, path: opsPrefix + "join", id: "join-cluster", tag: "cluster",
		summary: "Make this node a member of a cluster", text: "Only on the node's own socket.",
	}, func(ctx context.Context, in *struct{ Body JoinRequest }) (*answer[JoinResult], error) {
		res, err := s.Ops.Join(ctx, in.Body)
		if err != nil {
			return nil, err
		}
		return &answer[JoinResult]{Body: res}, nil
	})
	leave := s.operation(op{
		method: http.MethodPost, path: opsPrefix + "leave", id: "leave-cluster", tag: "cluster",
		summary: "Hand over, drain and leave the cluster",
		text: "Only on the node's own socket. With Accept: text/event-stream, messages `progress` ({\"text\"}) while it goes, then `done` " +
			"(a LeaveResult) or `problem` (a Problem).",
	})
	leave.Responses = streamResponses("Done.")
	leave.Responses["200"].Content["application/json"] = &huma.MediaType{Schema: s.schemas.Schema(reflect.TypeFor[LeaveResult](), true, "LeaveResult")}
	huma.Register(s.api, leave, s.leave)
}

type leaveInput struct {
	Accept string `header:"Accept" doc:"text/event-stream for progress."`
	Body   LeaveRequest
}

// leave leaves and answers at the end, or as it goes. The caller going away does
// not stop it: half a leave is worse than either end.
func (s *server) leave(ctx context.Context, in *leaveInput) (*huma.StreamResponse, error) {
	if strings.Contains(in.Accept, "text/event-stream") {
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			s.streamLeave(r, w, in.Body.Force)
		}}, nil
	}
	res := LeaveResult{Steps: []string{}}
	err := s.Ops.Leave(context.WithoutCancel(ctx), in.Body.Force, func(step string) { res.Steps = append(res.Steps, step) })
	if err != nil {
		return nil, NewProblem(err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		writeJSON(w, res)
	}}, nil
}

// streamLeave leaves and tells each step as it is taken.
func (s *server) streamLeave(r *http.Request, w http.ResponseWriter, force bool) {
	stream := s.streams.begin(w, r)
	if stream == nil {
		return
	}
	defer stream.end()
	res := LeaveResult{Steps: []string{}}
	err := s.Ops.Leave(context.WithoutCancel(r.Context()), force, func(step string) {
		res.Steps = append(res.Steps, step)
		_ = stream.sendJSON("progress", "", map[string]string{"text": step}) // the caller may have gone
	})
	if err != nil {
		_ = stream.sendJSON("problem", "", NewProblem(err))
		return
	}
	_ = stream.sendJSON("done", "", res)
}
