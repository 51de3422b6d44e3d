package node

import (
	"context"
	"errors"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// A command whose leader is lost while it is committed may have happened or not. Who asked for it can look; an
// operation of several steps has to know before it goes on.

const (
	// doubtTimeout is how long an answer is waited for.
	doubtTimeout = 10 * time.Second
	// doubtEvery is how often it is asked for.
	doubtEvery = 50 * time.Millisecond
)

// proposeSurely is Propose for a command that does no harm when it happens twice: in doubt it is proposed
// again, and what that says is the outcome. A node that has been removed meanwhile gets nil.
func (m *member) proposeSurely(ctx context.Context, cmd fsm.Command, progress func(string)) error {
	return untilKnown(ctx, func(ctx context.Context) error {
		_, err := m.Propose(ctx, cmd)
		return err
	}, m.removed, progress)
}

// untilKnown calls propose, and again while nobody can say what came of it: until there is an answer, or moot
// is true. It returns the doubt when that lasts for doubtTimeout.
func untilKnown(ctx context.Context, propose func(context.Context) error, moot func() bool, progress func(string)) error {
	doubt := propose(ctx)
	if !errors.Is(doubt, errUnknownOutcome) {
		return doubt
	}
	progress("the leader was lost meanwhile: asking again")
	ctx, cancel := context.WithTimeout(ctx, doubtTimeout)
	defer cancel()
	again := time.NewTicker(doubtEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return doubt
		case <-again.C:
		}
		if moot() {
			return nil
		}
		err := propose(ctx)
		if !errors.Is(err, errUnknownOutcome) && !errors.Is(err, web.ErrNoLeader) {
			return err
		}
	}
}
