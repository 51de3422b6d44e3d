package node

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/web"
)

// A node that comes back with the disk it had before the cluster was rebuilt
// without it (see Recover) is refused by the rebuilt cluster, and hears of it as
// any removed node does. Two that come back together may be a majority of the old
// cluster and hear each other, so they would not ask. So every node asks, before
// it takes up anything, all members it knows of, and later on those that are dead,
// how often the cluster was rebuilt. A member that says more often than this node
// knows, and does not know this node, is right.

// firstAsk bounds the first round, which everything a node takes up waits for.
const firstAsk = 500 * time.Millisecond

// supersededText is what such a node's event says; removedText says what to do.
const supersededText = "the cluster was rebuilt without this node (pontoon recover)"

// watchSuperseded asks until this node is told that it was left behind.
func (m *member) watchSuperseded(ctx context.Context) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for !m.superseded.Load() {
		changed := m.store.Changed()
		s := m.store.State()
		first := !m.asked.Load()
		if checkMember(s, m.self()) == nil {
			if by := m.supersededBy(ctx, s, first); by != "" {
				m.noteSuperseded(by)
			}
			m.asked.Store(true)
			if first {
				m.wakeDriver()
			}
		}
		if !first {
			changed = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changed:
		}
	}
	return nil
}

// supersededBy asks the members of s that it is worth asking and names one that
// was rebuilt without this node, "" if none says so.
func (m *member) supersededBy(ctx context.Context, s *fsm.State, all bool) string {
	limit := askEvery
	if all {
		limit = firstAsk
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var by atomic.Pointer[string]
	var g errgroup.Group
	for _, n := range s.Nodes() {
		name := string(n.Name)
		if name == m.cfg.Name || n.Alive && !all {
			continue
		}
		g.Go(func() error {
			var reply memberAnswer
			who, err := m.askMember(ctx, name, n.Address, &reply)
			// A node that was removed may know less than it says.
			if err == nil && checkMember(s, who) == nil && supersedes(s, reply) {
				by.Store(&name)
				cancel()
			}
			return nil
		})
	}
	_ = g.Wait() // the answers are in by
	if name := by.Load(); name != nil {
		return *name
	}
	return ""
}

// supersedes says whether an answer comes from a cluster that was rebuilt after
// s, which has this node as a member, without it.
func supersedes(s *fsm.State, a memberAnswer) bool {
	return !a.Member && a.Recoveries > s.Cluster().Recoveries
}

// noteSuperseded makes this node a removed one for good: as long as it has this
// disk, whoever it hears.
func (m *member) noteSuperseded(by string) {
	m.logger.Warn(supersededText, "by", by)
	m.events.add(Event{Kind: web.EventRecovery, Node: fsm.NodeID(m.cfg.Name), Text: by + " says: " + supersededText})
	m.superseded.Store(true)
	if err := m.updateMembership(func(ms *membership) { ms.Superseded = true }); err != nil {
		m.logger.Error("not saved that the cluster was rebuilt without this node", "err", err)
	}
	m.wakeDriver()
}
