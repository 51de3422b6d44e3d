package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/node/health"
	"pontoon/web"
)

const (
	// gatherVerdicts is the least time between two looks at what there is to say. A verdict that comes up in between
	// waits, and is committed with others; one that comes alone does not.
	gatherVerdicts = 10 * time.Millisecond
	// roundShare bounds what judging costs: the pause after a round is so many times as long as it was.
	roundShare = 4
	// retryVerdicts is the pace of trying again what could not be committed, or is held back.
	retryVerdicts = 500 * time.Millisecond
	// lookOwn is the pace while probes say otherwise than what is committed, by too few of them yet: the prober
	// tells only when its own view changes.
	lookOwn = 200 * time.Millisecond
	// commitVerdicts is how long one attempt may take: what there is to say changes meanwhile.
	commitVerdicts = 2 * time.Second
	// lookVerdicts is the pace while nothing is to be said.
	lookVerdicts = 10 * time.Second
)

// probing is this node's probes of endpoints, and what becomes of their results.
type probing struct {
	m      *member
	prober *health.Prober
	news   chan struct{} // capacity 1: a result is another one
	heard  chan reached  // capacity 1: what the others reach
	asks   errgroup.Group

	// Of the one goroutine that judges.
	state    *fsm.State // the targets are made from it
	judged   *fsm.State // the newest that was looked at
	factors  map[string]uint8
	epochs   map[string]uint64 // in which this node is prober
	base     map[uint32]uint64 // see findings
	doubt    suspicion
	told     bool   // that it doubts
	problems string // that were logged

	mu        sync.Mutex
	words     string // what is held back, and why
	committed uint64 // verdicts, by this node
	held      int
}

func newProbing(m *member) *probing {
	p := &probing{m: m, news: make(chan struct{}, 1), heard: make(chan reached, 1), base: map[uint32]uint64{}}
	p.prober = health.New(health.Options{Logger: m.logger, Notify: func() { wake(p.news) }})
	p.prober.AvoidPorts(slotPorts(m.slot))
	return p
}

// run probes and judges until ctx ends.
func (p *probing) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.prober.Run(ctx) })
	g.Go(func() error { return p.judge(ctx) })
	return g.Wait()
}

// judge looks at what the probes say whenever that, or the state, changes: at once, but for a pause after each
// round, in which what comes up gathers.
func (p *probing) judge(ctx context.Context) error {
	defer func() { _ = p.asks.Wait() }() // they end with ctx and return nothing
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := p.m.store.Changed()
		next, busy := p.round(ctx)
		rest := max(gatherVerdicts, roundShare*busy)
		timer.Reset(rest)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(max(0, next-rest))
		if !p.await(ctx, changed, timer.C) {
			return nil
		}
	}
}

// await returns once there is a reason to judge again; false: to end.
func (p *probing) await(ctx context.Context, changed <-chan struct{}, late <-chan time.Time) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-changed:
			changed = p.m.store.Changed()
			if s := p.m.store.State(); p.state != nil && fsm.SharesConfig(p.judged, s) && maps.Equal(p.factors, p.factorsAt(s)) {
				continue
			}
		case <-p.news:
		case r := <-p.heard:
			p.doubt = p.doubt.heard(r)
		case <-late:
		}
		return true
	}
}

// round gives the prober its targets and commits what there is to commit. It returns after what time to
// look again if nothing happens before, and how long it was busy.
func (p *probing) round(ctx context.Context) (next, busy time.Duration) {
	s, start := p.m.store.State(), time.Now()
	p.judged = s
	if !p.m.contact.everFresh() {
		return retryVerdicts, 0 // the state on disk may be old
	}
	p.retarget(s)
	if !p.prober.Settled() {
		return gatherVerdicts, 0 // the results may be answers to what was asked before
	}
	results := p.results()
	p.takeUp(s, results)
	all := findings(s, p.factors, results, p.base)
	trouble, others := "", p.others(s)
	if slices.ContainsFunc(all, func(f finding) bool { return f.dies() }) {
		trouble = p.m.ownTrouble(start)
	}
	doubt, held, ask := p.doubt.step(all, trouble, len(others) > 0, start)
	p.doubt = doubt
	if len(ask) > 0 {
		p.asks.Go(func() error {
			p.heard <- p.ask(ctx, others, ask)
			return nil
		})
	}
	p.tell(len(held), heldWords(all, held, trouble, p.doubt.witness()), trouble != "" || p.doubt.witness() != "")
	due, later := dueVerdicts(all, held, start)
	busy = time.Since(start)
	for _, verdicts := range due {
		s.Asked(verdicts)
	}
	if len(due) > 0 {
		p.commit(ctx, s, due)
	}
	return nextLook(all, len(due)+len(held) > 0, later, time.Now()), busy
}

// nextLook is after what time to judge again if nothing happens before. unsettled: something was due, or is held back; later is when
// something will be due without any news, zero for never.
func nextLook(all []finding, unsettled bool, later, now time.Time) time.Duration {
	next := lookVerdicts
	if unsettled {
		next = retryVerdicts
	}
	if slices.ContainsFunc(all, func(f finding) bool { return f.early }) {
		next = min(next, lookOwn)
	}
	if !later.IsZero() {
		next = min(next, max(later.Sub(now), gatherVerdicts))
	}
	return next
}

// factorsAt is what this node probes at s; see probeFactors.
func (p *probing) factorsAt(s *fsm.State) map[string]uint8 {
	if p.m.removed() || p.m.leaving.Load() {
		return nil
	}
	return probeFactors(s, fsm.NodeID(p.m.cfg.Name))
}

// retarget gives the prober what is to be probed at s, if that may be something else than before.
func (p *probing) retarget(s *fsm.State) {
	factors := p.factorsAt(s)
	if p.state != nil && fsm.SharesServices(p.state, s) && maps.Equal(factors, p.factors) {
		return
	}
	targets, problems := probeTargets(s, factors)
	p.prober.Want(targets)
	p.state, p.factors = s, factors
	words := ""
	for _, err := range problems {
		words += err.Error() + "\n"
	}
	if words != p.problems && words != "" {
		p.m.logger.Warn("some endpoints cannot be probed", "err", words)
	}
	p.problems = words
}

// takeUp notes how many probes of each endpoint had been begun when this node became its prober: one that is under way then was
// sent before, and may have been lost to what is over now.
func (p *probing) takeUp(s *fsm.State, results map[uint32]health.Result) {
	p.settle(results)
	epochs := map[string]uint64{}
	for instance, factor := range p.factors {
		if factor == 1 {
			_, epochs[instance] = s.Prober(instance)
		}
	}
	if maps.Equal(epochs, p.epochs) {
		return
	}
	for _, svc := range s.Services() {
		instance := instanceFor(s, svc)
		if epoch, mine := epochs[instance]; !mine || p.epochs[instance] == epoch {
			continue
		}
		for _, e := range svc.Endpoints {
			r := results[e.ID]
			if p.base[e.ID] = r.Probes; r.Flying {
				p.base[e.ID]++
			}
		}
	}
	p.epochs = epochs
}

// settle forgets what was noted of endpoints that have been probed often enough since, are counted anew because they are
// probed otherwise, or are probed no more.
func (p *probing) settle(results map[uint32]health.Result) {
	maps.DeleteFunc(p.base, func(id uint32, base uint64) bool {
		r, probed := results[id]
		return !probed || r.Probes+1 < base || r.Probes >= base+fsm.MaxProbeCount
	})
}

// results are those of the prober, by endpoint.
func (p *probing) results() map[uint32]health.Result {
	list := p.prober.Results()
	out := make(map[uint32]health.Result, len(list))
	for _, r := range list {
		out[r.Key] = r
	}
	return out
}

// commit has the verdicts committed. What cannot be is due again. Who does not know the cluster's newest state says
// nothing: it may not be the prober any more, and would be refused.
func (p *probing) commit(ctx context.Context, s *fsm.State, due map[string][]fsm.Verdict) {
	if !p.m.fresh() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, commitVerdicts)
	defer cancel()
	for _, cmd := range healthCommands(fsm.NodeID(p.m.cfg.Name), slices.Sorted(maps.Keys(due)), due, s.Prober) {
		b, err := fsm.Encode(cmd)
		if err == nil {
			_, err = p.m.proposeWithin(ctx, proposal{command: b})
		}
		if err != nil {
			p.m.logger.Debug("verdicts on endpoints not committed", "err", err)
			return
		}
		p.mu.Lock()
		p.committed += uint64(verdictsIn(cmd))
		p.mu.Unlock()
	}
}

func verdictsIn(c fsm.Command) int {
	switch c := c.(type) {
	case fsm.SetHealth:
		return len(c.Verdicts)
	case fsm.Batch:
		n := 0
		for _, one := range c.Commands {
			n += verdictsIn(one)
		}
		return n
	}
	return 0
}

// tell keeps what is held back for the status, and raises an event once the reason is certain, and when it is over.
func (p *probing) tell(held int, words string, certain bool) {
	p.mu.Lock()
	p.words, p.held = words, held
	p.mu.Unlock()
	if p.told == (held > 0) || held > 0 && !certain {
		return
	}
	p.told = held > 0
	if !p.told {
		words = "the endpoints that stopped answering the probes of this node all at once answer again, or are down for others as well"
	}
	self := fsm.NodeID(p.m.cfg.Name)
	p.m.events.add(Event{Kind: web.EventHealth, Node: self, Text: fmt.Sprintf("%s: %s", self, words)})
}

// warning is what operators should know of the probes of this node; "" is nothing.
func (p *probing) warning() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.words
}

// ownTrouble says what of this node's own links may be why endpoints do not answer; "" for nothing.
func (m *member) ownTrouble(now time.Time) string {
	if l := m.local.get(); !l.unsure && !l.linksUp {
		return "a data plane interface here has no carrier"
	}
	if links := cutOff(m.reports.all(now, m.knownNode))[fsm.NodeID(m.cfg.Name)]; len(links) > 0 {
		return "most nodes do not reach this one on " + wordLinks(links)
	}
	return ""
}
