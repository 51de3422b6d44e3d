package bpf

import "time"

const (
	countersAge   = 10 * time.Second // from which on a flow's counters are told
	countersEvery = 5 * time.Second  // between two tellings of one flow, at least
	countersRate  = 20_000           // records a second, at most
)

// turns says whose counters a sweep tells: of all flows that live long, or of each so manieth, in
// turn, so that nothing needs to be remembered of any.
type turns struct {
	last  instant // when the last turn began
	count uint64
	parts uint64 // turns until everybody had one
}

// telling is what a sweep tells the other nodes.
type telling struct {
	counters bool          // it is somebody's turn
	turn     uint64        // whose
	parts    uint64        // of so many
	since    time.Duration // whoever saw a packet since has something to tell
	left     int           // records that may still be told
	quiet    []pontoonFlowKey
	known    []pontoonFlowKey
}

// beginTelling decides whether this sweep tells counters. Call with sweepMu held.
func (s *sweeper) beginTelling(owned uint64) {
	t := &s.d.turns
	since := s.now.since(t.last)
	if t.last.hz != 0 && since < countersEvery {
		return
	}
	budget := uint64(countersRate * countersEvery.Seconds())
	s.telling = telling{
		counters: true, turn: t.count, parts: owned/budget + 1, left: int(budget),
		since: since * time.Duration(max(t.parts, 1)),
	}
	t.last, t.count, t.parts = s.now, t.count+1, s.telling.parts
}

// look notes a flow that is to be told of: one that was quiet long enough, or whose counters have changed.
func (t *telling) look(s *sweeper, key *pontoonFlowKey, f *pontoonFlow) {
	if f.reply() || f.replica() || f.doomed() || FlowState(f.State) == StateClosed {
		return
	}
	r, wanted, _ := s.d.idle.rules(uint32(f.Service))
	if !wanted || r.replicate == ReplicateNone {
		return
	}
	age := s.now.age(f.Created)
	if f.quiet() {
		if age >= r.minAge {
			t.quiet = appendHalves(t.quiet, key, f)
		}
		return
	}
	if t.counters && t.left > 0 && age >= countersAge && s.now.idle(f.LastSeen) < t.since &&
		(t.parts == 1 || key.hash(bucketSeed)%t.parts == t.turn%t.parts) {
		t.left--
		t.known = appendHalves(t.known, key, f)
	}
}

func appendHalves(keys []pontoonFlowKey, key *pontoonFlowKey, f *pontoonFlow) []pontoonFlowKey {
	keys = append(keys, *key)
	if !f.oneHalf() {
		keys = append(keys, otherKey(key, f))
	}
	return keys
}

// tell sends what was noted. Counters can wait: a consumer that is behind is not given more.
func (s *sweeper) tell() error {
	t := &s.telling
	defer func() { t.quiet, t.known = t.quiet[:0], t.known[:0] }()
	var records []byte
	note := func(reason uint8) func(c *connection) {
		return func(c *connection) { records = c.appendRecord(records, s.now, opUpdate, reason) }
	}
	if len(t.quiet) > 0 {
		if err := askPairs(s.d.finder.louden, t.quiet, note(reasonNew)); err != nil {
			return err
		}
	}
	if len(t.known) > 0 && len(s.d.events) < cap(s.d.events)/2 {
		if err := askPairs(s.d.finder.find, t.known, note(reasonCounters)); err != nil {
			return err
		}
	}
	s.d.emit(records)
	return nil
}

// askPairs calls each with what is there of the connections whose halves the keys are, the forward
// half first.
func askPairs(ask func([]pontoonFlowKey, func(int, *pontoonFlow)) error, keys []pontoonFlowKey, each func(*connection)) error {
	var c connection
	have := false
	done := func() {
		if have {
			each(&c)
		}
		have = false
	}
	err := ask(keys, func(i int, found *pontoonFlow) {
		switch {
		case have && mirrorOf(&c, &keys[i]):
			if found != nil && mirrored(&c.key, &c.forward, &keys[i], found) {
				c.reply = *found
			}
		case found != nil && !found.reply() && !found.replica():
			done()
			c, have = connection{key: keys[i], forward: *found, reply: pontoonFlow{LastSeen: found.LastSeen}}, true
		}
	})
	done()
	return err
}

// mirrorOf says whether key is that of the other half of c.
func mirrorOf(c *connection, key *pontoonFlowKey) bool {
	return !c.forward.oneHalf() && otherKey(&c.key, &c.forward) == *key
}
