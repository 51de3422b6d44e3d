package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is how often [WaitFor] looks. It bounds how late an event is
// seen, so it stays well below what the demo prints.
const pollInterval = 20 * time.Millisecond

// ErrGiveUp, wrapped in what a condition returns, ends the waiting at once:
// what is awaited cannot come any more.
var ErrGiveUp = errors.New("no use in waiting")

// WaitFor calls cond every 20 ms until it returns nil. An error of cond says
// how things stand meanwhile; when ctx ends, or when cond's error wraps
// [ErrGiveUp], WaitFor returns an error that says what was awaited and the
// last such state. The caller sets the deadline in ctx.
func WaitFor(ctx context.Context, what string, cond func(ctx context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	began := time.Now()
	var last error
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		// A condition cut short by the deadline knows less than the one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if errors.Is(err, ErrGiveUp) {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w after %s; last: %w", what, context.Cause(ctx),
				time.Since(began).Round(time.Millisecond), last)
		}
	}
}
