package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"pontoon/fsm"
)

// A node that doubts its own probes asks the others what they reach. They probe at once then.

const (
	// reachWait is how long an asked node waits for its probes to end, reachTimeout how long the one
	// that asks waits for the answer.
	reachWait    = 1500 * time.Millisecond
	reachTimeout = 2 * time.Second
	// reachLook is how often an asked node looks whether they have.
	reachLook = 25 * time.Millisecond
)

// reachQuestion asks which of these endpoints a node reaches.
type reachQuestion struct {
	Endpoints []uint32 `json:"endpoints"`
}

type reachAnswer struct {
	Reached []uint32 `json:"reached"`
}

// others are the nodes that probe what this one does, and can be asked.
func (p *probing) others(s *fsm.State) []fsm.NodeID {
	var out []fsm.NodeID
	for _, n := range s.Nodes() {
		if string(n.Name) != p.m.cfg.Name && n.Role == fsm.RoleLB && n.Alive && !n.Draining {
			out = append(out, n.Name)
		}
	}
	return out
}

// ask asks the others about endpoints.
func (p *probing) ask(ctx context.Context, others []fsm.NodeID, ids []uint32) reached {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	answers, errs := map[fsm.NodeID][]uint32{}, []error(nil)
	for _, n := range others {
		asked.Go(func() {
			var a reachAnswer
			err := p.m.peers.callFor(ctx, string(n), "/internal/reach", reachQuestion{ids}, &a)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				answers[n] = a.Reached
			}
		})
	}
	asked.Wait()
	if len(answers) == 0 {
		return reached{err: fmt.Errorf("ask what others reach: %w", errors.Join(errs...)), when: time.Now()}
	}
	return reached{by: whoReaches(ids, answers), when: time.Now()}
}

// whoReaches names for each endpoint the first node that reaches it, "" for nobody.
func whoReaches(ids []uint32, answers map[fsm.NodeID][]uint32) map[uint32]fsm.NodeID {
	out := make(map[uint32]fsm.NodeID, len(ids))
	for _, id := range ids {
		out[id] = ""
	}
	for _, node := range slices.Sorted(maps.Keys(answers)) {
		for _, id := range answers[node] {
			if by, asked := out[id]; asked && by == "" {
				out[id] = node
			}
		}
	}
	return out
}

// serveReach answers ask.
func (m *member) serveReach(w http.ResponseWriter, r *http.Request) {
	var q reachQuestion
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&q); err != nil {
		answer(w, 0, nil, err)
		return
	}
	var a reachAnswer
	if m.probing != nil {
		a.Reached = m.probing.reach(r.Context(), q.Endpoints[:min(len(q.Endpoints), askSample)])
	}
	answer(w, 0, a, nil)
}

// reach has the endpoints probed now and returns those that answer.
func (p *probing) reach(ctx context.Context, ids []uint32) []uint32 {
	ctx, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	asked := time.Now()
	p.prober.ProbeNow(ids...)
	look := time.NewTicker(reachLook)
	defer look.Stop()
	for {
		passed, open := p.passedSince(ids, asked)
		if !open {
			return passed
		}
		select {
		case <-ctx.Done():
			return passed
		case <-look.C:
		}
	}
}

// passedSince lists the endpoints that have answered a probe that ended since then, and says whether probes of others have
// not ended yet. What is not probed here is not reached.
func (p *probing) passedSince(ids []uint32, since time.Time) (passed []uint32, open bool) {
	for _, id := range ids {
		r, ok := p.prober.Result(id)
		switch {
		case !ok:
		case r.At.Before(since):
			open = true
		case r.Passed:
			passed = append(passed, id)
		}
	}
	return passed, open
}
