package bpf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// sweepLoop takes out the flows whose time is over. The pause after a sweep is twenty times the
// sweep, at least a second, so that a large table costs a twentieth of one CPU and not more; it is
// shorter while somebody has to be told of an end.
func (d *Dataplane) sweepLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var rested time.Time // not before then, whoever asks
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-d.sweepNow:
			if wait := time.Until(rested); wait > 0 {
				timer.Reset(wait)
				continue
			}
		}
		start := time.Now()
		urgent, err := d.sweepOnce(ctx)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("flows not swept", "err", err)
		}
		took := time.Since(start)
		rested = time.Now().Add(doomedCPUShareInverse * took)
		timer.Reset(d.pause(urgent, time.Now(), took))
	}
}

// sweep looks at every entry once, counts, and ends connections: those of which both halves have
// been idle for too long, and those whose endpoint has none any more.
func (d *Dataplane) sweep(ctx context.Context) error {
	_, err := d.sweepOnce(ctx)
	return err
}

// sweepOnce is sweep; it returns how many connections wait for the next one (see pause).
func (d *Dataplane) sweepOnce(ctx context.Context) (int, error) {
	d.sweepMu.Lock()
	defer d.sweepMu.Unlock()
	s := sweeper{d: d, wall: time.Now(), figures: newTally(), crowded: d.crowded()}
	s.guests.begin(d, s.wall)
	before, changes := d.accounts.read(), d.changes()
	for _, m := range d.flowTables() {
		var err error
		if s.now, err = d.clock.now(); err != nil {
			return 0, fmt.Errorf("sweep: %w", err)
		}
		if m == d.flowTable() {
			s.beginTelling(uint64(max(0, int64(d.accounts.get(0)))))
		}
		for part, err := range m.dump(ctx) {
			if err == nil {
				err = s.chunk(m, part)
			}
			if err != nil {
				return s.doomed + s.urgent, fmt.Errorf("sweep: %w", err)
			}
		}
	}
	d.accounts.audit(before, s.figures.census, d.changes()-changes)
	d.totals.swept(s.figures)
	d.traffic.forget(func(service uint16) bool {
		return s.figures.present[service] == 0 && !d.idle.knows(uint32(service))
	})
	s.sendPokes()
	if s.wall.Sub(d.affinitiesSwept) < affinityEvery {
		return s.doomed + s.urgent, nil
	}
	d.affinitiesSwept = s.wall
	return s.doomed + s.urgent, d.sweepAffinities(ctx)
}

// changes counts what changes the number of connections: programs and user space together. Of what
// programs do, new connections stand for the closed ones too.
func (d *Dataplane) changes() uint64 {
	promoted, err := counter(d.maps.Counters, pontoonCounterCOUNTER_PROMOTED)
	if err != nil {
		d.log.Warn("counter not read", "err", err)
	}
	return 2*promoted + d.accounts.changes.Load()
}

// sweeper is one sweep.
type sweeper struct {
	d       *Dataplane
	now     instant
	wall    time.Time
	figures tally
	crowded bool
	doomed  int
	urgent  int
	telling telling
	guests  guests
	pokes   []poke
}

// chunk counts what stays. Of a connection that goes, neither half is counted, whichever of them
// the dump brings first.
func (s *sweeper) chunk(m flowTable, part chunk) error {
	var candidates []candidate
	for i := range part.keys {
		c := candidate{key: part.keys[i], seen: part.values[i]}
		if c.why = s.look(&c); c.why == goesOn {
			s.count(m, &c)
			if m == s.d.flowTable() {
				s.telling.look(s, &c.key, &c.seen)
				s.guests.visit(s.d, &c.key, &c.seen)
			}
			continue
		}
		candidates = append(candidates, c)
	}
	if err := errors.Join(s.tell(), s.guests.settle(s.d)); err != nil {
		return err
	}
	if len(candidates) == 0 {
		return nil
	}
	return s.end(m, candidates)
}

func (s *sweeper) count(m flowTable, c *candidate) {
	if m == s.d.flowTable() {
		s.figures.count(&c.seen)
	} else if !c.seen.reply() {
		s.figures.halfOpen++
	}
}

// why is the reason for which a half is looked at more closely.
type why uint8

const (
	goesOn    why = iota
	wasIdle       // for too long, by itself
	isDoomed      // and not both sides have been told, as far as is known
	isDropped     // its endpoint has ended: no word about it
	isReset       // the same, and whoever still sends is told
)

// look judges one half by itself. A reply half goes with its forward half, unless there is none.
func (s *sweeper) look(c *candidate) why {
	switch {
	case s.expired(c.key.Proto, &c.seen):
		return wasIdle
	case c.seen.reply():
		return goesOn
	case c.seen.doomed():
		return isDoomed
	}
	policy, ended := s.d.endings.of(&c.seen, s.wall)
	switch {
	case !ended:
		return goesOn
	case policy == PolicyDrop, policy == PolicyMove && c.key.Proto == protoUDP:
		return isDropped
	}
	return isReset
}

// expired judges one half by itself.
func (d *Dataplane) expired(proto uint8, f *pontoonFlow, now instant) bool {
	if f.doomed() { // on every node by its own clock, whoever owned it
		return now.idle(f.LastSeen) > d.idle.fixed.told(proto)
	}
	limit, known := d.idle.limit(proto, f, now)
	if !known {
		return false
	}
	if FlowState(f.State) < StateEstablished { // whosever it is: nobody tells that it was given up
		return now.idle(f.LastSeen) > limit
	}
	idle, ages := d.owners.idle(f, d.opts.Slot, now)
	return ages && idle > limit
}

// end decides about candidates and carries out what was decided.
func (s *sweeper) end(m flowTable, candidates []candidate) error {
	s.d.flowMu.Lock()
	defer s.d.flowMu.Unlock()
	var gone removal
	var records []byte
	for i := range candidates {
		c := &candidates[i]
		if err := s.judge(m, c); err != nil {
			return err
		}
		if c.stays {
			s.count(m, c)
		}
		gone.forwards = append(gone.forwards, c.gone.forwards...)
		gone.replies = append(gone.replies, c.gone.replies...)
		records = append(records, c.record...)
	}
	if err := s.d.remove(m, gone); err != nil {
		return err
	}
	s.d.emit(records)
	return nil
}

// candidate is one half whose time may be over, and what judge decides about it. A reply half whose
// forward half is idle too neither stays nor is removed: it goes with that half.
type candidate struct {
	key    pontoonFlowKey
	seen   pontoonFlow
	why    why
	stays  bool
	gone   removal
	record []byte // that the connection is gone, if it was ours
}

// judge reads everything again: a packet may have come by since the dump.
func (s *sweeper) judge(m flowTable, c *candidate) error {
	var reply pontoonFlow
	paired, err := partner(m, &c.key, &c.seen, &reply)
	if err != nil {
		return err
	}
	if c.why == wasIdle && paired {
		if c.stays = !s.expired(c.key.Proto, &reply); c.stays || c.seen.reply() {
			return nil
		}
	}
	var current pontoonFlow
	found, err := m.find(c.key, &current)
	if err != nil || !found {
		return err
	}
	if current.reply() != c.seen.reply() || !samePair(&c.key, &current, &c.seen) ||
		c.why == wasIdle && (current.LastSeen != c.seen.LastSeen || current.State != c.seen.State) {
		c.stays = true
		return nil
	}
	if current.reply() { // what is left of a connection whose forward half is gone
		c.gone.replies = []pontoonFlowKey{c.key}
		return nil
	}
	whole := connection{key: c.key, forward: current, reply: reply}
	if !paired {
		whole.reply = pontoonFlow{LastSeen: current.LastSeen}
	}
	return s.decide(m, c, &whole, paired)
}

// decide is about whole connections, or what there is of them.
func (s *sweeper) decide(m flowTable, c *candidate, whole *connection, paired bool) error {
	f := &whole.forward
	established := m == s.d.flowTable() && FlowState(f.State) != StateClosed
	switch {
	case c.why == isDoomed:
		if f.told() && (!paired || whole.reply.told()) {
			break
		}
		c.stays = true
		s.poke(whole, paired)
		return nil
	case c.why == isReset && established:
		c.stays = true
		return s.doom(whole, paired, s.d.idle.fixed.told(whole.key.Proto))
	case c.why == isReset && m == s.d.flowTable(): // closed: its last packets may still come
		c.stays = true
		return nil
	case c.why == wasIdle && established && !f.doomed() && s.d.resets(f, s.now):
		c.stays = true
		return s.doom(whole, paired, s.d.idle.fixed.toldIdle(whole.key.Proto))
	}
	c.gone.forwards = []pontoonFlowKey{c.key}
	if paired {
		c.gone.replies = []pontoonFlowKey{otherKey(&c.key, f)}
	}
	if m == s.d.flowTable() && s.d.answersFor(f) {
		s.d.tombs.note(&c.key, s.now.stamp(whole.idle(s.now)), s.now)
	}
	if m == s.d.flowTable() && s.d.answersFor(f) && !f.quiet() {
		c.record = whole.appendRecord(nil, s.now, opDelete, reasonExpire)
	}
	return nil
}

// resets tells whether both sides are to hear that f was idle for too long. Of a replica that is
// its owner's to say, while there is one.
func (d *Dataplane) resets(f *pontoonFlow, now instant) bool {
	r, _, _ := d.idle.rules(uint32(f.Service))
	return r.idleReset && FlowState(f.State) == StateEstablished && d.speaksFor(f, now)
}

// speaksFor tells whether this node may tell the sides of f that it has ended.
func (d *Dataplane) speaksFor(f *pontoonFlow, now instant) bool {
	return d.answersFor(f) || d.owners.orphan(f, now)
}

// doom marks both halves: from now on, and for so long, packets of the connection are answered and
// not forwarded.
func (s *sweeper) doom(whole *connection, paired bool, last time.Duration) error {
	stamp := s.now.stamp(s.d.idle.fixed.told(whole.key.Proto) - last)
	if err := s.d.doomer.mark(whole.key, &whole.forward, stamp); err != nil {
		return err
	}
	s.poke(whole, paired)
	return nil
}

// poke notes who is to be made to speak: the sides of a doomed TCP connection that were not told
// yet.
func (s *sweeper) poke(whole *connection, paired bool) {
	f := &whole.forward
	s.doomed++
	if whole.key.Proto != protoTCP || !s.d.speaksFor(f, s.now) {
		return
	}
	// With more of them than a sweep may poke, each gets its chance.
	if n := 2 * s.d.doomedBefore; n > pokesPerSweep && rand.IntN(n) >= pokesPerSweep {
		return
	}
	if !f.told() {
		s.pokes = append(s.pokes, poke{
			from: addrPort(whole.key.Daddr, whole.key.Dport), to: addrPort(whole.key.Saddr, whole.key.Sport),
		})
	}
	if paired && !whole.reply.told() {
		s.pokes = append(s.pokes, poke{from: addrPort(f.NewSaddr, f.NewSport), to: addrPort(f.NewDaddr, f.NewDport)})
	}
}

func (s *sweeper) sendPokes() {
	s.d.doomedBefore = s.doomed
	failed := 0
	var last error
	for _, p := range s.pokes[:min(len(s.pokes), pokesPerSweep)] {
		if err := s.d.poker.send(p); err != nil {
			failed, last = failed+1, err
		}
	}
	if failed > 0 {
		s.d.log.Debug("sides of ended connections not poked", "failed", failed, "err", last)
	}
}
