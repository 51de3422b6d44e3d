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

// replace takes the wanted services and tells whether endpoints ended by that.
func (e *endings) replace(services []Service) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	live := map[uint16]bool{}
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
			if !ep.DrainUntil.IsZero() {
				e.drains[id] = ep.DrainUntil
			}
		}
	}
	news := false
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
	e.known, e.ended, e.drains = map[uint16]bool{}, map[uint16]bool{}, nil
}

// of tells whether f's endpoint has ended at now, and by what policy.
func (e *endings) of(f *pontoonFlow, now time.Time) (Policy, bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	ended := e.ended[f.Endpoint]
	if until, ok := e.drains[f.Endpoint]; ok && !now.Before(until) {
		ended = true
	}
	policy := e.policies[f.Service] // reset when nobody remembers
	return policy, ended && policy != PolicyKeep
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
