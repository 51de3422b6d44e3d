package web

import (
	"context"
	"fmt"
	"net/http"
	"time"

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
	stepwise(s, op{
		method: http.MethodPost, path: opsPrefix + "leave", id: "leave-cluster", tag: "cluster",
		summary: "Hand over, drain and leave the cluster", text: "Only on the node's own socket.",
	}, func(ctx context.Context, in LeaveRequest, progress func(string)) (LeaveResult, error) {
		return LeaveResult{}, s.Ops.Leave(ctx, in.Force, progress)
	}, func(r *LeaveResult) *[]string { return &r.Steps })
	stepwise(s, op{
		method: http.MethodPost, path: opsPrefix + "recover", id: "recover-cluster", tag: "cluster",
		summary: "Rebuild the cluster from this node after its quorum was lost for good", text: "Only on the node's own socket.",
	}, s.Ops.Recover, func(r *RecoverResult) *[]string { return &r.Steps })
}
