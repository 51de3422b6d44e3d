package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
	"pontoon/web"
)

// A daemon that stops in order leaves its kernel a longer lease than it had, so that a
// restart is not heard: it rests. Until that lease is over nobody else may take its VIPs
// without need, or two would answer. So it says what it leaves before it goes, and the leader
// counts on it: with the grace, and with what operators ask for.

// restLease is how long a daemon that stops in order lets the host go on answering for its VIPs.
const restLease = 5 * time.Second

// farewellTime bounds the steps of saying goodbye. Who is not heard leaves no more than everybody
// gives a daemon that was killed.
const farewellTime = 500 * time.Millisecond

// restPoll is the pace of asking whether a node rests still.
const restPoll = 100 * time.Millisecond

// errResting says that a change was not made because it would take VIPs from a node that rests.
var errResting = fmt.Errorf("the old master's kernel answers still: %w", fsm.ErrNotEligible)

// restLength is the lease that a daemon with this configuration leaves when it stops in order. Whoever
// gives a silent daemon more time than usual gets answers for all of it; one who gives it less than a
// lease does not want to wait for it at all.
func restLength(c Config) time.Duration {
	if c.AgentGrace < c.Failover.Lease {
		return c.Failover.Lease
	}
	return max(c.Failover.Lease, restLease, min(c.AgentGrace, maxLease))
}

// rest is how far a daemon is with saying that it stops.
type rest struct {
	going  atomic.Bool   // its reports say so
	noted  chan struct{} // capacity 1: the leader answered one of them
	agreed atomic.Bool   // that was in time
}

// words is what the last reports of all nodes mean for the judge. A node's kernel has heard of its daemon no
// later than the report was made, and answers for so long as that said.
func (t *reportTable) words() map[fsm.NodeID]word {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[fsm.NodeID]word, len(t.rows))
	for name, r := range t.rows {
		out[fsm.NodeID(name)] = word{heard: r.at, answering: r.at.Add(asDuration(r.LeaseMS))}
	}
	return out
}

// resting lists the nodes whose daemon said goodbye and whose kernel may answer at now for its VIPs, and
// until when.
func (t *reportTable) resting(now time.Time) map[fsm.NodeID]time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[fsm.NodeID]time.Time{}
	for name, r := range t.rows {
		if until := r.at.Add(asDuration(r.LeaseMS)); r.Rests && until.After(now) {
			out[fsm.NodeID(name)] = until
		}
	}
	return out
}

// takenFrom names one of the nodes that cmd would take an instance from; "" if it leaves theirs to all of them.
func takenFrom(s *fsm.State, cmd fsm.Command, nodes map[fsm.NodeID]time.Time) fsm.NodeID {
	if len(nodes) == 0 {
		return ""
	}
	next, err := s.Apply(s.Index()+1, cmd)
	if err != nil {
		return "" // it will be refused for that
	}
	for _, was := range s.Instances() {
		_, rests := nodes[was.Master]
		if is, _ := next.Instance(was.Name); rests && is.Master != was.Master {
			return was.Master
		}
	}
	return ""
}

// proposedHere commits on this node, which should lead, what somebody asked for; not now if that takes VIPs from a
// node that rests.
func (m *member) proposedHere(p proposal) (uint64, error) {
	now := time.Now()
	if nodes := m.reports.resting(now); len(nodes) > 0 && m.raft.isLeader() {
		cmd, err := fsm.Decode(p.command)
		if err != nil {
			return 0, err
		}
		if from := takenFrom(m.store.State(), cmd, nodes); from != "" {
			return 0, &remoteError{kind: errResting, text: fmt.Sprintf(
				"the daemon of %s was stopped, and its kernel answers for its VIPs for %s more, so that a restart is not heard: ask again then, or when it is back",
				from, nodes[from].Sub(now).Round(100*time.Millisecond))}
		}
	}
	index, err := m.applyIf(p)
	if err == nil {
		// A caller that is a follower answers its own only once it has applied the command, and of a moved mastership the
		// old master should hear when the new one does: routers see both announce alike in between.
		m.raft.spread()
	}
	return index, err
}

// Propose commits cmd through the leader, wherever that is, and returns its
// Raft index once this node has applied it too. It is sent again while it
// certainly was not taken (no leader yet, leader just changed); it is never
// sent again when its outcome is unknown. What would take VIPs from a node that rests
// waits until that one is back, or is over.
func (m *member) Propose(ctx context.Context, cmd fsm.Command) (uint64, error) {
	return m.ProposeIf(ctx, cmd, "")
}

// ProposeIf is Propose, if what cmd replaces has the fingerprint want just before; "" is any.
func (m *member) ProposeIf(ctx context.Context, cmd fsm.Command, want string) (uint64, error) {
	if m.removed() {
		return 0, &remoteError{text: removedText, kind: web.ErrNoLeader}
	}
	b, err := fsm.Encode(cmd)
	if err != nil {
		return 0, fmt.Errorf("encode command: %w", err)
	}
	again := time.NewTicker(restPoll)
	defer again.Stop()
	for began := time.Now(); ; {
		index, err := m.proposeWithin(ctx, proposal{b, want})
		if !errors.Is(err, errResting) || time.Since(began) > maxLease+restPoll {
			return index, err
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-again.C:
		}
	}
}

// farewell is what a daemon that is stopped in order does while it still hears the others: it leads no
// longer, and it says for how long its kernel will answer for its VIPs.
func (m *member) farewell(ctx context.Context) {
	if m.removed() || m.leaving.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, farewellTime)
	defer cancel()
	m.yield(ctx)
	if m.dp == nil || m.leaseLeft() <= 0 {
		return
	}
	m.rest.going.Store(true)
	m.wakeReport()
	select {
	case <-ctx.Done():
		m.logger.Info("no leader has taken note that this daemon stops: its VIPs are answered for no longer than those of one that dies")
	case <-m.rest.noted:
		m.rest.agreed.Store(true)
	}
}

// yield gives leadership to another node, if there is one.
func (m *member) yield(ctx context.Context) {
	if !m.leads() {
		return
	}
	err := answerOf(ctx, func() raft.Future { return m.raft.LeadershipTransfer() }) // a disk that hangs holds Raft up
	if err != nil && ctx.Err() == nil {
		m.logger.Debug("leadership not handed over before the stop", "err", err)
	}
}

// leaveLease is the last renewal of a daemon that stops in order. One whose lease is over, or that has been
// removed, leaves none. If the leader did not take note of it, it is no longer than the grace of a daemon that dies.
func (m *member) leaveLease() error {
	if m.dp == nil || m.removed() || m.leaseLeft() <= 0 {
		return nil
	}
	length := max(m.cfg.Failover.Lease, min(restLength(m.cfg), m.cfg.AgentGrace))
	if m.rest.agreed.Load() {
		length = restLength(m.cfg)
	}
	return m.dp.RenewLease(m.contact.vouchedFor(length))
}

// leaseTold is for how long after a report this node's kernel answers for its VIPs at most without hearing
// of its daemon again, and whether it is the last report of a daemon that stops.
func (m *member) leaseTold() (length time.Duration, rests bool) {
	switch {
	case m.dp == nil:
		return 0, false
	case m.rest.going.Load():
		return restLength(m.cfg), true
	}
	return max(m.cfg.Failover.Lease, m.leaseLeft()), false // an earlier life may have left a longer one
}
