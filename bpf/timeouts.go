package bpf

import (
	"sync"
	"time"
)

// timeouts of connections that are not established; those of established ones come with the
// service.
type timeouts struct {
	halfOpen, refused, fin, closed, oneWay time.Duration
	reset                                  time.Duration // closed by nothing but a reset, which may be forged
	doomed                                 time.Duration // how long the sides of a connection that was ended are told so
	doomedSCTP                             time.Duration // the same: until each has sent a heartbeat (RFC 9260, 8.3)
	lastWord                               time.Duration // the same when it had been idle for too long
}

func defaultTimeouts() timeouts {
	return timeouts{
		halfOpen: 10 * time.Second,
		refused:  5 * time.Second,
		fin:      30 * time.Second,
		closed:   5 * time.Second,
		reset:    30 * time.Second,
		oneWay:   30 * time.Second,
		doomed:   30 * time.Second,
		lastWord: 10 * time.Second,

		doomedSCTP: 90 * time.Second,
	}
}

// told is how long the sides of a connection that was ended are told so.
func (t *timeouts) told(proto uint8) time.Duration {
	if proto == protoSCTP {
		return t.doomedSCTP
	}
	return t.doomed
}

// toldIdle is the same when it had been idle for too long. The sides of a TCP connection are made
// to speak; those of an association speak of their own accord.
func (t *timeouts) toldIdle(proto uint8) time.Duration {
	if proto == protoSCTP {
		return t.doomedSCTP
	}
	return t.lastWord
}

// rules are what the flows of a service live by.
type rules struct {
	idle      time.Duration
	idleReset bool
	affinity  time.Duration
	replicate Replicate
	minAge    time.Duration // before the other nodes are told
}

// idleTimes knows how long a flow may be idle.
type idleTimes struct {
	mu       sync.RWMutex
	fixed    timeouts
	services map[uint32]rules // nil: not told yet
}

func (t *idleTimes) init(fixed timeouts) { t.fixed = fixed }

func (t *idleTimes) replace(services []Service) {
	byID := make(map[uint32]rules, len(services))
	for _, s := range services {
		byID[s.ID] = rules{idle: s.idle(), idleReset: s.IdleReset && s.Protocol != protoUDP, affinity: s.Affinity, replicate: s.Replicate, minAge: s.ReplicateMinAge}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.services = byID
}

// limit returns the time after which f may go. Before the first Sync after a start nobody knows
// how long the established flows found in the maps may be idle: then they stay (false).
func (t *idleTimes) limit(proto uint8, f *pontoonFlow, now instant) (time.Duration, bool) {
	switch FlowState(f.State) {
	case StateFin:
		return t.fixed.fin, true
	case StateClosed:
		if f.Flags&flagFins == 0 && now.age(f.Created)-now.idle(f.LastSeen) >= t.fixed.reset {
			return t.fixed.reset, true // what lived for as long is worth the doubt; a flood's does not
		}
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
	r, wanted, told := t.rules(service)
	if wanted {
		return r.idle, true
	}
	return Service{Protocol: proto}.idle(), told
}

// rules returns those of a service, whether it is wanted at present, and whether anything was
// said about services yet.
func (t *idleTimes) rules(service uint32) (r rules, wanted, told bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, wanted = t.services[service]
	return r, wanted, t.services != nil
}

// knows tells whether the service is wanted at present.
func (t *idleTimes) knows(service uint32) bool {
	_, wanted, told := t.rules(service)
	return wanted || !told
}
