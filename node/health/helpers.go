package health

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// helpers do the probes that need TLS or HTTP/2, each on a goroutine of its own. How many there are at a
// time is for the board to say.
type helpers struct {
	ctx   context.Context
	group *errgroup.Group
	wake  func()

	mu   sync.Mutex
	done []ended
}

// job is what a helper is to do. It must not touch the op.
type job struct {
	op *op
	do func(ctx context.Context) outcome
}

// ended is what came of it.
type ended struct {
	op      *op
	outcome outcome
}

func newHelpers(ctx context.Context, g *errgroup.Group, wake func()) *helpers {
	return &helpers{ctx: ctx, group: g, wake: wake}
}

// hand lets a helper do it. The op ends by what the helper says, and by no deadline of the loop's.
func (h *helpers) hand(j job) {
	j.op.due = never
	h.group.Go(func() error {
		ctx, cancel := context.WithTimeout(h.ctx, j.op.check.probe.Timeout) // never changes
		defer cancel()
		out := j.do(ctx)
		h.mu.Lock()
		h.done = append(h.done, ended{j.op, out})
		h.mu.Unlock()
		h.wake()
		return nil
	})
}

// take returns what has ended.
func (h *helpers) take() []ended {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := h.done
	h.done = nil
	return done
}
