package node

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// endTime bounds the end of the daemon once it was asked for. In order it takes tenths of a second. A write to a
// disk that hangs ends when it likes, and Raft cannot be stopped before; the service manager, who has more patience than this
// (TimeoutStopSec), had better hear why.
const endTime = 8 * time.Second

// endOf returns what wait does, but no later than limit after ctx has ended; then it is an error that says why.
func endOf(ctx context.Context, wait func() error, limit time.Duration, why func() string) error {
	var end errgroup.Group
	done := make(chan error, 1)
	end.Go(func() error {
		done <- wait()
		return nil
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return fmt.Errorf("stop: not done within %s, ended all the same: %s", limit, why())
	}
}

// holdUp says what keeps the daemon from ending.
func (d *daemon) holdUp() string {
	d.mu.Lock()
	m := d.ending
	d.mu.Unlock()
	trouble := ""
	if m != nil {
		trouble = m.raft.disk.trouble(time.Now())
	}
	return cmp.Or(trouble, "something in it does not end; its log may tell")
}
