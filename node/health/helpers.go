package health

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// helpers do the probes that need TLS or HTTP/2, each on a goroutine of its own. All but take's and
// hand's inner parts belongs to the loop.
type helpers struct {
	ctx     context.Context
	group   *errgroup.Group
	wake    func()
	stamp   func(*op) // says that it begins now
	room    int       // goroutines at most
	running int
	waiting []job

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

func newHelpers(ctx context.Context, g *errgroup.Group, room int, wake func(), stamp func(*op)) *helpers {
	return &helpers{ctx: ctx, group: g, room: max(room, 1), wake: wake, stamp: stamp}
}

// hand lets a helper do it, now or when one is free.
func (h *helpers) hand(j job) {
	j.op.next = never
	if h.running >= h.room {
		h.waiting = append(h.waiting, j)
		return
	}
	h.running++
	h.stamp(j.op) // what it has waited for is not the endpoint's time
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

// take returns what has ended, and lets as many begin that wait.
func (h *helpers) take() []ended {
	h.mu.Lock()
	done := h.done
	h.done = nil
	h.mu.Unlock()
	h.running -= len(done)
	for h.running < h.room && len(h.waiting) > 0 {
		j := h.waiting[0]
		h.waiting[0] = job{}
		h.waiting = h.waiting[1:]
		h.hand(j)
	}
	return done
}
