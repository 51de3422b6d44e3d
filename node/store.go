package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

// store holds the newest replicated state and hands it to Raft as its state
// machine. Readers take the pointer; those who wait for a change take the
// channel first, then look, then wait.
type store struct {
	state atomic.Pointer[fsm.State]

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced at each new state
	transitions []transition  // not yet turned into events
	wake        chan struct{} // capacity 1: transitions is not empty

	live  atomic.Bool // this node knows the cluster's state: what is applied now happens now
	fatal chan error  // capacity 1: the log holds what this version cannot read
}

// transition is one step of the state, kept so that no event is lost although
// watchers of the state see only the newest.
type transition struct {
	prev, next *fsm.State
	at         time.Time // when next was applied
}

// maxTransitions bounds what a slow event reader can hold back; older steps
// are then merged into one, which loses detail but no outcome.
const maxTransitions = 4096

var _ raft.FSM = (*store)(nil)

func newStore() *store {
	s := &store{changed: make(chan struct{}), wake: make(chan struct{}, 1), fatal: make(chan error, 1)}
	s.state.Store(fsm.New())
	return s
}

// State returns the newest applied state.
func (s *store) State() *fsm.State { return s.state.Load() }

// Changed returns a channel that is closed when a newer state than the one
// seen after this call is there.
func (s *store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *store) publish(next *fsm.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	prev := s.state.Swap(next)
	close(s.changed)
	s.changed = make(chan struct{})
	if !s.live.Load() {
		return // the log of the past is being read again
	}
	if n := len(s.transitions); n >= maxTransitions {
		s.transitions[n-1].next = next
	} else {
		s.transitions = append(s.transitions, transition{prev, next, time.Now()})
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// takeTransitions empties the queue of steps since the last call.
func (s *store) takeTransitions() []transition {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.transitions
	s.transitions = nil
	return t
}

// applyResult is what Apply answers to the proposer on the leader.
type applyResult struct{ err error }

// Apply implements raft.FSM. A command this version cannot read is an error of
// that command alone: the log must stay readable.
func (s *store) Apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return applyResult{}
	}
	cmd, err := fsm.Decode(l.Data)
	if err != nil {
		err = fmt.Errorf("read log entry %d: %w", l.Index, err)
		if errors.Is(err, fsm.ErrUnsupported) {
			// To skip it would make this node differ from those that can read it.
			select {
			case s.fatal <- err:
			default:
			}
			return applyResult{err: err}
		}
		// Nobody can read it, so all refuse it, as they do an empty command.
		next, _ := s.State().Apply(l.Index, nil)
		s.publish(next)
		return applyResult{err: err}
	}
	next, err := s.State().Apply(l.Index, cmd)
	s.publish(next)
	return applyResult{err: err}
}

// watchFatal returns the error that makes it impossible to go on.
func (s *store) watchFatal(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.fatal:
		return fmt.Errorf("%w: install the version the other nodes run", err)
	}
}

// Snapshot implements raft.FSM. The state is immutable, so this costs a pointer.
func (s *store) Snapshot() (raft.FSMSnapshot, error) {
	return stateSnapshot{s.State()}, nil
}

// Restore implements raft.FSM.
func (s *store) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	next, err := fsm.Restore(b)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	s.publish(next)
	return nil
}

type stateSnapshot struct{ state *fsm.State }

// Persist implements raft.FSMSnapshot.
func (s stateSnapshot) Persist(sink raft.SnapshotSink) error {
	b, err := s.state.Snapshot()
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		return fmt.Errorf("write snapshot: %w", (errJoinCancel(sink, err)))
	}
	return sink.Close()
}

func errJoinCancel(sink raft.SnapshotSink, err error) error {
	if cerr := sink.Cancel(); cerr != nil {
		return fmt.Errorf("%w (and cancelling it: %w)", err, cerr)
	}
	return err
}

// Release implements raft.FSMSnapshot.
func (stateSnapshot) Release() {}
