package node

import (
	"context"
	"encoding/json"
	"net/http"
)

// flushRequest asks a peer to forget the flows of a service.
type flushRequest struct {
	Service uint32 `json:"service"`
}

type flushReply struct {
	Flushed int `json:"flushed"`
}

func (m *member) flushHere(ctx context.Context, service uint32) (int, error) {
	if m.dp == nil {
		return 0, nil
	}
	return m.dp.Flush(ctx, service)
}

func (m *member) serveFlush(w http.ResponseWriter, r *http.Request) {
	var req flushRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&req); err != nil {
		answer(w, 0, nil, err)
		return
	}
	n, err := m.flushHere(r.Context(), req.Service)
	answer(w, 0, flushReply{n}, err)
}
