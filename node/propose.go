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

// proposeWithin is Propose with an encoded command, for as long as a commit may take.
func (m *member) proposeWithin(ctx context.Context, b []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, raftApply)
	defer cancel()
	index, err := m.proposeUntilTaken(ctx, b)
	if err != nil {
		return index, err
	}
	return index, m.waitApplied(ctx, index)
}

func (m *member) proposeUntilTaken(ctx context.Context, b []byte) (uint64, error) {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		index, err := m.proposeOnce(ctx, b)
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

func (m *member) proposeOnce(ctx context.Context, b []byte) (uint64, error) {
	if m.raft.isLeader() {
		return m.proposedHere(b)
	}
	leader, _, err := m.raft.waitLeader(ctx)
	if err != nil {
		return 0, errNotLeader
	}
	if leader == m.cfg.Name {
		return m.proposedHere(b)
	}
	return m.peers.propose(ctx, leader, b)
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
