package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"pontoon/fsm"
	"pontoon/node/plan"
)

// Limits of the steps of leaving.
const (
	handOverTimeout = 10 * time.Second
	departTimeout   = 10 * time.Second
)

func (m *member) managedVIPs() []netip.Addr {
	var out []netip.Addr
	for _, v := range m.store.State().VIPs() {
		out = append(out, v.Address)
	}
	return out
}

func (m *member) isLastVoter() bool {
	s := m.store.State()
	me, ok := s.Node(fsm.NodeID(m.cfg.Name))
	if !ok || !me.Voter {
		return false
	}
	for _, n := range s.Nodes() {
		if n.Voter && n.Name != me.Name {
			return false
		}
	}
	return true
}

// undoTimeout bounds taking back what a leave did that failed; the command that
// asked for it may be gone by then.
const undoTimeout = 5 * time.Second

// leave takes this node out of the cluster. A failure before the last step
// leaves it a member as it was.
func (m *member) leave(ctx context.Context, force bool, progress func(string)) error {
	self := fsm.NodeID(m.cfg.Name)
	before, _ := m.store.State().Node(self)
	undo := func() error {
		if before.Draining {
			return nil // so it was before
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		_, err := m.Propose(ctx, fsm.DrainNode{Node: self, Draining: false})
		return err
	}
	if err := m.handOver(ctx, self, progress); err != nil {
		if !force {
			return errors.Join(fmt.Errorf("%w; the node stays a member (--force leaves all the same)", err), undo())
		}
		progress("not handed over: " + err.Error())
	}
	m.waitParted(ctx, progress)
	if m.raft.isLeader() {
		progress("handing leadership to another node")
		if err := m.raft.LeadershipTransfer().Error(); err != nil && m.raft.isLeader() {
			m.logger.Warn("leadership not handed over before leaving", "err", err)
		}
	}
	progress("leaving the Raft group")
	m.leaving.Store(true)
	defer m.leaving.Store(false)
	err := m.proposeSurely(ctx, fsm.RemoveNode{Node: self, Force: force}, progress)
	switch {
	case err == nil, errors.Is(err, fsm.ErrNotFound): // the latter where it was in doubt, and had happened
	case errors.Is(err, errBehind), m.removed():
		return nil // the others have parted with it before it could hear of that
	case force:
		progress("the others do not know it yet (" + err.Error() + "): remove it there with `pontoon node remove " + m.cfg.Name + "`")
		return nil
	default:
		return errors.Join(fmt.Errorf("leave: %w", err), undo())
	}
	return m.waitDeparture(ctx)
}

// handOver drains this node and waits until nobody depends on it: another
// node is master of its instances, if there is one that can be.
func (m *member) handOver(ctx context.Context, self fsm.NodeID, progress func(string)) error {
	if err := m.waitSuccessor(ctx, self, progress); err != nil {
		return err
	}
	if err := m.proposeSurely(ctx, fsm.DrainNode{Node: self, Draining: true}, progress); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	for told := ""; ; {
		changed := m.store.Changed()
		left := m.stillMasterOf(self)
		if left == "" {
			return nil
		}
		if left != told {
			progress("handing over instance " + left)
			told = left
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("instance %s has no other node to go to: see `pontoon status`", left)
		case <-changed:
		}
	}
}

// waitSuccessor waits until another node holds all flows: draining before that
// would hand connections to a node that does not know them. It says what it waits
// for, and in the end what was in the way.
func (m *member) waitSuccessor(ctx context.Context, self fsm.NodeID, progress func(string)) error {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	for told := ""; ; {
		changed := m.store.Changed()
		err := m.store.State().HandOver(self)
		if err == nil {
			return nil
		}
		if err.Error() != told {
			told = err.Error()
			progress("waiting: " + told)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not handed over within %s: %w", handOverTimeout, err)
		case <-changed:
		}
	}
}

// waitParted waits until this node announces nothing by BGP any more: a drained node
// goes on for a moment as the last choice, so that routers have turned away before
// its routes go.
func (m *member) waitParted(ctx context.Context, progress func(string)) {
	if m.routing == nil || m.routing.announcedNow() == 0 || !m.drained() {
		return
	}
	progress("waiting until routers have turned to other nodes")
	ctx, cancel := context.WithTimeout(ctx, partWait+2*assertEvery)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for m.routing.announcedNow() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// drained says whether this node is draining and somebody else announces what it did.
func (m *member) drained() bool {
	s, self := m.store.State(), fsm.NodeID(m.cfg.Name)
	me, _ := s.Node(self)
	return me.Draining && len(plan.Announcing(s, self)) == 0
}

// stillMasterOf names an instance with VIPs that self serves.
func (m *member) stillMasterOf(self fsm.NodeID) string {
	s := m.store.State()
	for _, v := range s.VIPs() {
		if in, ok := s.Instance(v.Instance); ok && in.Serves(self) {
			return in.Name
		}
	}
	return ""
}

// waitDeparture waits until the leader has taken this node out of the Raft
// group, so that its silence does not count against the others' quorum.
func (m *member) waitDeparture(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, departTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		servers, err := m.raft.servers()
		if err != nil {
			return nil // Raft itself has stopped: it saw its removal
		}
		in := false
		for _, s := range servers {
			in = in || string(s.ID) == m.cfg.Name
		}
		if !in {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // the removal is committed; the leader goes on with it
		case <-tick.C:
		}
	}
}
