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
		return t.established(proto, f.Service)
	}
	if proto == protoTCP {
		return t.fixed.halfOpen, true
	}
	return t.fixed.oneWay, true
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

// owners remembers which nodes are alive, and since when one is not.
type owners struct {
	mu    sync.RWMutex
	known bool
	alive map[uint8]bool
	died  map[uint8]instant
}

func (o *owners) set(alive map[uint8]bool, now instant) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.died == nil {
		o.died = map[uint8]instant{}
	}
	for slot := range uint8(Slots) {
		switch {
		case alive[slot]:
			delete(o.died, slot)
		case !o.known || o.alive[slot]:
			o.died[slot] = now
		}
	}
	o.alive = make(map[uint8]bool, len(alive))
	for slot, yes := range alive {
		o.alive[slot] = yes
	}
	o.known = true
}

// idle returns how long f counts as idle; false: it does not age at present.
func (o *owners) idle(f *pontoonFlow, self uint8, now instant) (time.Duration, bool) {
	idle := now.idle(f.LastSeen)
	if !f.replica() || f.OwnerSlot == self {
		return idle, true
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if !o.known || o.alive[f.OwnerSlot] {
		return idle, false
	}
	if died, ok := o.died[f.OwnerSlot]; ok {
		idle = min(idle, now.duration(now.jiffies-died.jiffies))
	}
	return idle, true
}

// knows tells whether the service is wanted at present.
func (t *idleTimes) knows(service uint32) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, ok := t.services[service]
	return ok || t.services == nil
}
