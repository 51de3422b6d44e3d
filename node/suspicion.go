package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pontoon/fsm"
)

// Whether a node that finds nearly everything dead at once is to be believed is decided here, from
// values alone. It is more likely to be cut off itself; so the others are asked what they reach.

const (
	// suspectFrom is how many endpoints of a service it takes: one may well die alone. Only the last that works
	// at all is everything.
	suspectFrom = 2
	// suspectShare is the part of what worked, in percent, that has to fail together.
	suspectShare = 80
	// askSample is how many endpoints the others are asked about at most.
	askSample = 64
	// askReachEvery is the pace of asking while another node still reaches what this one does not.
	askReachEvery = 2 * time.Second
	// answerHolds is for how long an answer is believed: what fails together does not fail at one
	// moment, since each endpoint has its own turn.
	answerHolds = 5 * time.Second
	// askTries is how often nobody may answer before a node believes itself.
	askTries = 2
)

// suspicion is what a node knows of whether its own probes are to be believed. It is a value; the zero
// value is that of a node without doubts.
type suspicion struct {
	asking  bool
	asked   time.Time             // when the last question was asked
	failed  int                   // how many in a row nobody answered
	answers map[uint32]fsm.NodeID // by endpoint: who reaches it, "" for nobody
	at      time.Time             // when they came
}

// reached is what the others answered.
type reached struct {
	err  error // nobody did
	by   map[uint32]fsm.NodeID
	when time.Time
}

// doubtful picks the endpoints whose death is not to be believed without asking: those of which nearly
// all others that worked, on the whole or in their service, do not answer at present either. Besides
// it returns what is to be asked about. Both are in the order of all.
func doubtful(all []finding) (dying, ask []uint32) {
	groups := map[string]*failures{"": {}}
	for i := range all {
		f := &all[i]
		if f.committed.Health != fsm.HealthUp {
			continue
		}
		if groups[f.service] == nil {
			groups[f.service] = &failures{}
		}
		groups[""].begin(f)
		groups[f.service].begin(f)
	}
	for i := range all {
		if f := &all[i]; f.committed.Health == fsm.HealthUp {
			groups[""].count(f)
			groups[f.service].count(f)
		}
	}
	everything := groups[""].together() || groups[""].last()
	for i := range all {
		f := &all[i]
		if f.committed.Health != fsm.HealthUp || !f.bad() || !everything && !groups[f.service].together() {
			continue
		}
		ask = append(ask, f.committed.Endpoint)
		if f.dies() {
			dying = append(dying, f.committed.Endpoint)
		}
	}
	return dying, ask
}

// failures counts among endpoints that worked those that fail now.
type failures struct {
	began              time.Time // when the first of those that die began to fail; zero: none dies
	all                int       // that worked
	worked, bad, dying int       // of those that were probed since
}

func (g *failures) begin(f *finding) {
	if g.all++; !f.dies() {
		return
	}
	if t := f.since.Add(-f.span); g.began.IsZero() || t.Before(g.began) {
		g.began = t
	}
}

// count leaves out who was not probed since the first failure: its interval is longer, and it may be as dead.
func (g *failures) count(f *finding) {
	if g.began.IsZero() || f.probed.Before(g.began) {
		return
	}
	g.worked++
	if f.bad() {
		g.bad++
	}
	if f.dies() {
		g.dying++
	}
}

// last says whether the only one dies.
func (g *failures) last() bool { return g.all == 1 && g.dying == 1 }

func (g *failures) together() bool {
	return g.worked >= suspectFrom && g.dying > 0 && g.bad*100 >= g.worked*suspectShare
}

// step says which endpoints are not to be called dead at now, and about which the others are to be
// asked; nil: about none. trouble is what is wrong with this node's own links, in words; others
// says whether there is anybody to ask.
func (s suspicion) step(all []finding, trouble string, others bool, now time.Time) (next suspicion, held map[uint32]bool, ask []uint32) {
	dying, about := doubtful(all)
	if len(dying) == 0 {
		s.answers, s.failed = nil, 0
		return s, nil, nil
	}
	held = map[uint32]bool{}
	if trouble != "" {
		for _, id := range dying {
			held[id] = true
		}
		return s, held, nil
	}
	if !others || s.failed >= askTries {
		return s, nil, nil
	}
	known := s.answers != nil && now.Sub(s.at) < answerHolds
	for _, id := range dying {
		if !known || s.reaches(id) != "" {
			held[id] = true
		}
	}
	if len(held) > 0 && !s.asking && (s.asked.IsZero() || !known && s.failed == 0 || now.Sub(s.asked) >= askReachEvery) {
		s.asking, s.asked = true, now
		ask = sample(about, askSample)
	}
	return s, held, ask
}

// reaches names who reaches an endpoint, "" for nobody. One that was not asked about is taken for what most
// are that were.
func (s suspicion) reaches(id uint32) fsm.NodeID {
	if by, asked := s.answers[id]; asked {
		return by
	}
	yes := 0
	for _, by := range s.answers {
		if by != "" {
			yes++
		}
	}
	if 2*yes < len(s.answers) || yes == 0 {
		return ""
	}
	return s.witness()
}

// witness is a node that reaches something, the first by name.
func (s suspicion) witness() fsm.NodeID {
	var first fsm.NodeID
	for _, by := range s.answers {
		if by != "" && (first == "" || by < first) {
			first = by
		}
	}
	return first
}

// heard takes an answer in.
func (s suspicion) heard(r reached) suspicion {
	s.asking = false
	if r.err != nil {
		s.failed++
		return s
	}
	s.failed, s.answers, s.at = 0, r.by, r.when
	return s
}

// sample picks at most n, evenly spread.
func sample(ids []uint32, n int) []uint32 {
	if len(ids) <= n {
		return ids
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = ids[i*len(ids)/n]
	}
	return out
}

// heldWords says what is held back and why, for people; "" when nothing is.
func heldWords(all []finding, held map[uint32]bool, trouble string, by fsm.NodeID) string {
	if len(held) == 0 {
		return ""
	}
	count := map[string]int{}
	for i := range all {
		if held[all[i].committed.Endpoint] {
			count[all[i].service]++
		}
	}
	const most = 3
	names := slices.SortedFunc(maps.Keys(count), func(a, b string) int { return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b)) })
	var parts []string
	for _, name := range names[:min(most, len(names))] {
		parts = append(parts, fmt.Sprintf("%d of %s", count[name], name))
	}
	if more := len(names) - most; more > 0 {
		parts = append(parts, fmt.Sprintf("those of %d more", more))
	}
	text := fmt.Sprintf("endpoints stopped answering the probes of this node all at once (%s); they are not called down", strings.Join(parts, ", "))
	switch {
	case trouble != "":
		return text + " because " + trouble
	case by != "":
		return text + " because " + string(by) + " reaches them: look at this node's links and routes to them"
	}
	return text + " before the other nodes are asked"
}
