package fsm

import (
	"cmp"
	"encoding/json"
	"hash/fnv"
	"net/netip"
	"slices"
)

// A verdict is under way for some milliseconds, in which an operator may have a
// service probed otherwise: what was found by the old question must not become the
// answer to the new one. So the prober says which question it has an answer to.

// question is what a service asks of its endpoints, as bytes; the address is not
// in it. It has to be the same on all nodes.
func (svc Service) question() []byte {
	p := svc.Probe
	p.Interval, p.Timeout, p.Rise, p.Fall = 0, 0, 0, 0 // see sameQuestion
	b, err := json.Marshal(p)
	if err != nil {
		return nil // strings, numbers and an address: it cannot fail
	}
	if p.ThroughVIP {
		b = append(b, netip.AddrPortFrom(svc.VIP, svc.Port).String()...)
		b = append(b, svc.Tunnel...)
	}
	return b
}

// questionTo is the sum of a question to one endpoint (FNV-1a), never 0.
func questionTo(question []byte, e Endpoint) uint32 {
	h := fnv.New32a()
	h.Write(question)
	b, _ := e.Address.AppendBinary(nil)
	h.Write(b)
	return max(h.Sum32(), 1)
}

// questions tells what is asked of those endpoints of a service that are wanted.
func (svc Service) questions(wanted func(id uint32) bool, tell func(id, question uint32)) {
	var question []byte
	for _, e := range svc.Endpoints {
		if !wanted(e.ID) {
			continue
		}
		if question == nil {
			question = svc.question()
		}
		tell(e.ID, questionTo(question, e))
	}
}

// Asked fills in which questions the verdicts answer, if s is the state by which
// the endpoints were probed.
func (s *State) Asked(verdicts []Verdict) {
	at := make(map[uint32]int, len(verdicts))
	for i := range verdicts {
		at[verdicts[i].Endpoint] = i
	}
	named := func(id uint32) bool {
		_, is := at[id]
		return is
	}
	for _, r := range s.services.rows {
		r.val.questions(named, func(id, question uint32) { verdicts[at[id]].Question = question })
	}
}

// answered picks, of the endpoints of a service, those that are named by a verdict
// which answers what the service asks them now. The verdicts are sorted by endpoint.
func (svc Service) answered(verdicts []Verdict, asked, mine *idSet) {
	svc.questions(asked.has, func(id, question uint32) {
		i, _ := slices.BinarySearchFunc(verdicts, id, func(v Verdict, id uint32) int { return cmp.Compare(v.Endpoint, id) })
		if q := verdicts[i].Question; q == 0 || q == question {
			mine.add(id)
		}
	})
}
