package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/transport"
)

// leaderTick is how often a leader looks at gossip while nothing signals:
// memberlist has no event for suspicion.
const leaderTick = 50 * time.Millisecond

// leadLoop runs the leader's duties whenever this node leads.
func (m *member) leadLoop(ctx context.Context) error {
	var stop func() error
	for {
		select {
		case <-ctx.Done():
			if stop != nil {
				return stop()
			}
			return nil
		case leading := <-m.raft.LeaderCh():
			if stop != nil {
				if err := stop(); err != nil {
					return err
				}
				stop = nil
			}
			if leading {
				stop = m.startLeading(ctx)
			}
			m.wakeReport()
		}
	}
}

func (m *member) startLeading(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.lead(ctx) })
	return func() error {
		cancel()
		return g.Wait()
	}
}

// hostAnswer is the outcome of one host check.
type hostAnswer struct {
	node  fsm.NodeID
	alive bool
}

// lead commits verdicts and reports and keeps the Raft group equal to the
// state's nodes. It waits first until everything its predecessors committed is
// applied here: a leader must not judge by an old state.
func (m *member) lead(ctx context.Context) error {
	term := m.raft.CurrentTerm()
	m.decisions.nowLeading(time.Now())
	for {
		err := m.raft.Barrier(raftApply).Error()
		if err == nil {
			break
		}
		m.logger.Debug("leadership lost before it began", "err", err)
		if ctx.Err() != nil || !m.raft.isLeader() {
			return nil
		}
	}
	if !m.finishRecoveryFirst(ctx) {
		return nil
	}
	// From here on this node knows what is committed (see provenCommit).
	m.leadTerm.Store(term)
	defer m.leadTerm.Store(0)
	m.wakeReport()
	m.logger.Info("leading the cluster", "gen", m.store.State().Index())
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fsm.MaxSlots * 2)
	answers := make(chan hostAnswer, fsm.MaxSlots*2)
	j := newJudge(m.cfg.AgentGrace, m.gossip.silentSince(), time.Now())
	p := newPreference(time.Now())
	tick := time.NewTicker(leaderTick)
	defer tick.Stop()
	var o oversight
	for {
		changed := m.store.Changed()
		j = m.dutyRound(ctx, g, answers, j)
		p = m.preferOther(m.store.State(), p)
		o = m.handOverIfCut(o)
		select {
		case <-ctx.Done():
			return g.Wait()
		case a := <-answers:
			j = j.hostAnswered(a.node, a.alive, time.Now())
		case <-tick.C:
		case <-changed:
		case <-m.leaderNow:
		}
	}
}

// dutyRound does once what there is to do.
func (m *member) dutyRound(ctx context.Context, g *errgroup.Group, answers chan<- hostAnswer, j judge) judge {
	s := m.store.State()
	if s.Cluster().ID == "" {
		return j
	}
	j.words = m.reports.words()
	j, r := j.step(s.Nodes(), fsm.NodeID(m.cfg.Name), m.gossip.members(), losses(m.reports.all(time.Now(), m.knownNode)), time.Now())
	for _, n := range r.check {
		node, _ := s.Node(n)
		g.Go(func() error {
			cctx, cancel := context.WithTimeout(ctx, hostCheckEvery)
			defer cancel()
			select {
			case answers <- hostAnswer{n, transport.HostAlive(cctx, node.Address)}:
			case <-ctx.Done():
			}
			return nil
		})
	}
	all := m.reports.all(time.Now(), m.knownNode)
	m.commitDues(duesOf(append(r.verdicts, burials(s, all)...), dueReports(s, all)))
	if err := m.adjustGroup(); err != nil {
		m.logger.Debug("change of the raft group failed", "err", err)
	}
	return j
}

// commitDuty commits one of the leader's own commands; losing leadership in
// the middle is not an error, the next leader sees the same facts.
func (m *member) commitDuty(cmd fsm.Command) error {
	b, err := fsm.Encode(cmd)
	if err != nil {
		return fmt.Errorf("encode %T: %w", cmd, err)
	}
	_, err = m.applyHere(b)
	return err
}

// dueReports picks the reports that say something new about a living node. What
// a node said before it knew of its own death, or of its joining again, is about
// an earlier life: it may have been in sync then. A node that others find cut off counts as
// one whose link is down, whatever it says, and also when it says nothing.
func dueReports(s *fsm.State, reports []agedReport) []fsm.NodeReport {
	return due(s.Nodes(), reports)
}

func due(nodes []fsm.Node, reports []agedReport) []fsm.NodeReport {
	var out []fsm.NodeReport
	cut := cutOff(reports)
	for _, r := range reports {
		i := slices.IndexFunc(nodes, func(n fsm.Node) bool { return string(n.Name) == r.Node })
		if i < 0 || !nodes[i].Alive {
			continue
		}
		n := nodes[i]
		now := fsm.NodeReport{Node: n.Name, Ready: n.Ready, LinksUp: n.LinksUp, InSync: n.InSync}
		if !r.Unsure && r.AgeMS <= 5*reportEvery.Milliseconds() && r.State >= max(n.Died, n.Joined) {
			now.Ready, now.LinksUp, now.InSync = r.Ready, r.LinksUp, r.InSync
		}
		now.LinksUp = now.LinksUp && len(cut[n.Name]) == 0
		if n.Ready != now.Ready || n.LinksUp != now.LinksUp || n.InSync != now.InSync {
			out = append(out, now)
		}
	}
	return out
}

// adjustGroup makes one change to the Raft group if one is due.
func (m *member) adjustGroup() error {
	servers, err := m.raft.servers()
	if err != nil {
		return err
	}
	applied := map[string]uint64{}
	for _, r := range m.reports.all(time.Now(), m.knownNode) {
		if r.AgeMS < 3*reportEvery.Milliseconds() {
			applied[r.Node] = r.Applied
		}
	}
	c, ok := nextChange(m.store.State().Nodes(), servers, applied, m.raft.CommitIndex())
	if !ok {
		return nil
	}
	id, addr := raft.ServerID(c.node), raft.ServerAddress(c.address)
	switch c.kind {
	case addNonvoter:
		err = m.raft.AddNonvoter(id, addr, 0, raftApply).Error()
	case promote:
		err = m.raft.AddVoter(id, addr, 0, raftApply).Error()
	case remove:
		err = m.raft.RemoveServer(id, 0, raftApply).Error() // watchMembers closes its connections
	case recordVoter:
		err = m.commitDuty(fsm.SetVoter{Node: fsm.NodeID(c.node)})
	}
	if errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrNotLeader) {
		return nil
	}
	return err
}
