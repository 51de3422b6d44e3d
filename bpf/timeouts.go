package bpf

import (
	"sync"
	"time"
)

// timeouts of connections that are not established; those of established ones come with the
// service.
type timeouts struct {
	halfOpen, refused, fin, closed, oneWay time.Duration
}

func defaultTimeouts() timeouts {
	return timeouts{
		halfOpen: 10 * time.Second,
		refused:  5 * time.Second,
		fin:      30 * time.Second,
		closed:   5 * time.Second,
		oneWay:   30 * time.Second,
	}
}

// idleTimes knows how long a flow may be idle.
type idleTimes struct {
	mu       sync.RWMutex
	fixed    timeouts
	services map[uint32]time.Duration // nil: not told yet
}

func (t *idleTimes) init(fixed timeouts) { t.fixed = fixed }

func (t *idleTimes) replace(services []Service) {
	byID := make(map[uint32]time.Duration, len(services))
	for _, s := range services {
		byID[s.ID] = s.idle()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.services = byID
}

// limit returns the time after which f may go. Before the first Sync after a start nobody knows
// how long the established flows found in the maps may be idle: then they stay (false).
func (t *idleTimes) limit(proto uint8, f *pontoonFlow) (time.Duration, bool) {
	switch FlowState(f.State) {
	case StateFin:
		return t.fixed.fin, true
	case StateClosed:
		return t.fixed.closed, true
	case StateRefused:
		return t.fixed.refused, true
	case StateEstablished:
		return t.established(proto, uint32(f.Service))
	}
	if proto == protoUDP {
		return t.fixed.oneWay, true
	}
	return t.fixed.halfOpen, true
}

func (t *idleTimes) established(proto uint8, service uint32) (time.Duration, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.services == nil {
		return 0, false
	}
	if limit, ok := t.services[service]; ok {
		return limit, true
	}
	return Service{Protocol: proto}.idle(), true
}

// knows tells whether the service is wanted at present.
func (t *idleTimes) knows(service uint32) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, ok := t.services[service]
	return ok || t.services == nil
}
