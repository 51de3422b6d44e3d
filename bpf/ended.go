package bpf

import (
	"sync"
	"time"
)

// endings knows which endpoints have no flows any more, and what becomes of those they had.
// Endpoints that this node has never heard of are none of its business: a peer may be ahead of it.
// Methods may be called concurrently.
type endings struct {
	mu       sync.RWMutex
	known    map[uint16]bool // heard of: of the last Sync, or found in the maps when they were opened
	ended    map[uint16]bool
	drains   map[uint16]time.Time // when the flows of endpoints that are there end
	policies map[uint16]Policy    // of services, those that are gone included
	dead     map[uint16]Policy    // of endpoints that are there and dead
}

// found notes the endpoints that the maps name at the start: what the first Sync does not name of
// them is gone.
func (e *endings) found(endpoints map[uint16]pontoonEndpoint, flows census) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known, e.ended = map[uint16]bool{}, map[uint16]bool{}
	e.policies = map[uint16]Policy{}
	for id := range endpoints {
		e.known[id] = true
	}
	for id, n := range flows {
		if id > 0 && n > 0 {
			e.known[uint16(id)] = true
		}
	}
}

// replace takes the wanted services and tells whether endpoints ended by that, or died.
func (e *endings) replace(services []Service) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	news := false
	live, dead := map[uint16]bool{}, map[uint16]Policy{}
	e.drains = map[uint16]time.Time{}
	for i := range services {
		s := &services[i]
		e.policies[uint16(s.ID)] = s.OnRemove
		for _, ep := range s.Endpoints {
			id := uint16(ep.ID)
			e.known[id] = true
			if ep.State == EndpointDown {
				continue
			}
			live[id] = true
			if ep.State == EndpointDead {
				was, known := e.dead[id]
				dead[id], news = s.OnDead, news || !known || was != s.OnDead
			}
			if !ep.DrainUntil.IsZero() {
				e.drains[id] = ep.DrainUntil
			}
		}
	}
	e.dead = dead
	for id := range e.known {
		switch {
		case live[id]:
			delete(e.ended, id)
		case !e.ended[id]:
			e.ended[id], news = true, true
		}
	}
	return news
}

// forget ends nothing any more.
func (e *endings) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known, e.ended, e.drains, e.dead = map[uint16]bool{}, map[uint16]bool{}, nil, nil
}

// of tells whether f has ended at now, with its endpoint or because that is dead, and by what policy.
func (e *endings) of(f *pontoonFlow, now time.Time) (Policy, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if policy, dead := e.dead[f.Endpoint]; dead {
		if unanswered(f) {
			return PolicyDrop, true
		}
		if policy != PolicyKeep {
			return policy, true
		}
	}
	ended := e.ended[f.Endpoint]
	if until, ok := e.drains[f.Endpoint]; ok && !now.Before(until) {
		ended = true
	}
	policy := e.policies[f.Service] // reset when nobody remembers
	return policy, ended && policy != PolicyKeep
}

// unanswered tells whether the endpoint has not said yes to f, so that another may be asked.
func unanswered(f *pontoonFlow) bool {
	return FlowState(f.State) < StateEstablished && FlowState(f.State) != StateSynAck
}

// next returns the time until the next drain ends, and whether one does.
func (e *endings) next(now time.Time) (time.Duration, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var soonest time.Duration
	found := false
	for _, until := range e.drains {
		if wait := until.Sub(now); wait > 0 && (!found || wait < soonest) {
			soonest, found = wait, true
		}
	}
	return soonest, found
}
