package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
	"pontoon/web"
)

// proposal is an encoded command, and the fingerprint of what it replaces; "" is any.
type proposal struct {
	command []byte
	want    string
}

// proposeWithin is Propose for as long as a commit may take.
func (m *member) proposeWithin(ctx context.Context, p proposal) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, raftApply)
	defer cancel()
	index, err := m.proposeUntilTaken(ctx, p)
	if err != nil {
		return index, err
	}
	return index, m.waitApplied(ctx, index)
}

func (m *member) proposeUntilTaken(ctx context.Context, p proposal) (uint64, error) {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		index, err := m.proposeOnce(ctx, p)
		if err == nil || !errors.Is(err, errNotLeader) {
			return index, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%w (waited %s): see `pontoon status` for who is alive", web.ErrNoLeader, raftApply)
		case <-again.C:
		}
	}
}

func (m *member) proposeOnce(ctx context.Context, p proposal) (uint64, error) {
	if m.raft.isLeader() {
		return m.proposedHere(p)
	}
	leader, _, err := m.raft.waitLeader(ctx)
	if err != nil {
		return 0, errNotLeader
	}
	if leader == m.cfg.Name {
		return m.proposedHere(p)
	}
	return m.peers.propose(ctx, leader, p)
}

// applyIf commits a proposal on this node, which should lead. Where something is wanted of what it replaces, nobody else's
// command can come between the look and the entry: others of this leader wait, and an entry of another leader would make
// this one fail.
func (m *member) applyIf(p proposal) (uint64, error) {
	if p.want == "" {
		m.writes.RLock()
		defer m.writes.RUnlock()
		return m.applyHere(p.command)
	}
	cmd, err := fsm.Decode(p.command)
	if err != nil {
		return 0, err
	}
	m.writes.Lock()
	defer m.writes.Unlock()
	if err := m.raft.Barrier(raftApply).Error(); err != nil {
		return 0, errNotLeader // nothing was done; who leads can be asked again
	}
	if err := m.store.State().CheckFingerprint(cmd, p.want); err != nil {
		return 0, err
	}
	return m.applyHere(p.command)
}

// applyHere commits an encoded command on this node, which should lead.
func (m *member) applyHere(b []byte) (uint64, error) {
	asked := time.Now()
	index, err := m.applyBytes(b)
	if err == nil && movedAt(m.store.State(), index) {
		if cmd, derr := fsm.Decode(b); derr == nil {
			m.decisions.put(index, decision{cause: causeOf(cmd), began: asked, committed: time.Now()})
		}
	}
	return index, err
}

func (m *member) applyBytes(b []byte) (uint64, error) {
	f := m.raft.Apply(b, raftApply)
	switch err := f.Error(); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrEnqueueTimeout):
		return 0, errNotLeader
	case errors.Is(err, raft.ErrRaftShutdown):
		return 0, fmt.Errorf("this node is stopping: %w", err)
	default:
		return 0, fmt.Errorf("%w: %w", errUnknownOutcome, err)
	}
	res, ok := f.Response().(applyResult)
	if !ok {
		return f.Index(), fmt.Errorf("unexpected answer %T of the state machine", f.Response())
	}
	return f.Index(), res.err
}

// waitApplied returns once this node's state is at index or beyond.
func (m *member) waitApplied(ctx context.Context, index uint64) error {
	for {
		changed := m.store.Changed()
		if m.store.State().Index() >= index {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (index %d, after %s)", errBehind, index, raftApply)
		case <-changed:
		}
	}
}
