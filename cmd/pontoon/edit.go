package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
)

// How often a change is tried when others change the same at the same moment, and how long to wait before the next time:
// the node that is asked may not have heard yet of what is in the way.
const (
	editTries = 10
	editPause = 50 * time.Millisecond
)

// edit reads what is at path and has write send it back with a change, under a header by which the daemon refuses that if
// somebody else has changed it meanwhile; then it is read and changed anew. With create, what is not there is no
// error: write gets the zero value, and there is false.
func edit[T any](a *app, cmd *cobra.Command, path string, create bool, write func(current T, there bool, condition http.Header) error) error {
	for try := 1; ; try++ {
		current, condition, err := readToEdit[T](a, cmd, path)
		there := err == nil
		if err != nil && (!create || !errors.Is(err, fsm.ErrNotFound)) {
			return err
		}
		if !there {
			condition = http.Header{"If-None-Match": {"*"}}
		}
		err = write(current, there, condition)
		if !errors.Is(err, fsm.ErrChanged) || try == editTries {
			return err
		}
		if err := pause(cmd.Context(), time.Duration(try)*editPause); err != nil {
			return err
		}
	}
}

// readToEdit returns what is at path, and the condition that it is still the same. A daemon of an earlier version
// answers without a tag: then there is none.
func readToEdit[T any](a *app, cmd *cobra.Command, path string) (v T, condition http.Header, err error) {
	c, err := a.api()
	if err != nil {
		return v, nil, err
	}
	answer, header, err := c.exchange(cmd.Context(), http.MethodGet, path, nil, callTimeout, nil)
	if err != nil {
		return v, nil, err
	}
	if tag := header.Get("ETag"); tag != "" {
		condition = http.Header{"If-Match": {tag}}
	}
	err = decode(answer, &v)
	return v, condition, err
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
