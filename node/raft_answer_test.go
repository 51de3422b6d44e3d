package node

import (
	"context"
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

// silentFuture is one that Raft forgot when it was shut down.
type silentFuture struct{}

func (silentFuture) Error() error { select {} }

type toldFuture struct{ err error }

func (f toldFuture) Error() error { return f.err }

func TestNobodyWaitsForAnAnswerThatRaftForgot(t *testing.T) {
	over := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if err := answerOf(ctx, func() raft.Future { return silentFuture{} }); !errors.Is(err, over) {
		t.Errorf("got %v", err)
	}
	for _, want := range []error{nil, raft.ErrNotLeader} {
		if err := answerOf(t.Context(), func() raft.Future { return toldFuture{want} }); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}
