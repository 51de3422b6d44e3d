package bpf

import "time"

// A connection by DSR has passed with two packets of its client's, which anybody can forge: what the
// endpoint says to that is not seen here. While there is room it is believed. In a crowded table it
// has to say more, or it goes as soon as a half-open one.
const provingPackets = 3

// crowded tells whether the flow table is more than half full.
func (d *Dataplane) crowded() bool {
	n := int64(d.accounts.get(0)) // negative only until a drift is mended
	return n > int64(d.maps.Flows.MaxEntries()/4)
}

// unproven tells whether f may be forged for all that has been seen of it. Of a copy its owner knows
// more, and a packet that came later than those of a handshake shows that somebody is there.
func (s *sweeper) unproven(f *pontoonFlow) bool {
	if !f.oneHalf() || f.replica() || f.doomed() || FlowState(f.State) != StateEstablished || f.packets() >= provingPackets {
		return false
	}
	return s.now.age(f.Created)-s.now.idle(f.LastSeen) < s.d.idle.fixed.halfOpen
}

// expired judges one half by itself, as things are in this sweep.
func (s *sweeper) expired(proto uint8, f *pontoonFlow) bool {
	if s.d.expired(proto, f, s.now) {
		return true
	}
	if !s.crowded || !s.unproven(f) {
		return false
	}
	if s.now.idle(f.LastSeen) > s.d.idle.fixed.halfOpen {
		return true
	}
	s.urgent++
	return false
}

// pause is how long to wait after a sweep that took so long. With urgent ones among what it has seen,
// which are doomed or in doubt while the table is crowded, the next may take a larger share of a CPU.
func (d *Dataplane) pause(urgent int, now time.Time, took time.Duration) time.Duration {
	pause := sweepCPUShareInverse * took
	if urgent > 0 {
		pause = doomedCPUShareInverse * took
	}
	if drain, ok := d.endings.next(now); ok {
		pause = min(pause, drain)
	}
	return max(minSweep, pause)
}
