package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// stubPipeline counts what goes through it.
type stubPipeline struct {
	raft.AppendPipeline
	sent int
}

func (p *stubPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.sent++
	return nil, nil
}

func TestAMuteLeaderIsHeardByNobody(t *testing.T) {
	layer, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := newRaftTransport(layer)
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	inner := &stubPipeline{}
	open := mutablePipeline{inner, tr}
	send := func() []error {
		_, piped := open.AppendEntries(nil, nil)
		_, opened := tr.AppendEntriesPipeline("x", "127.0.0.1:1")
		return []error{piped, opened, tr.AppendEntries("x", "127.0.0.1:1", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})}
	}
	tr.mute(true)
	for i, err := range send() {
		if !errors.Is(err, errMute) {
			t.Errorf("way %d is open: %v", i, err)
		}
	}
	tr.mute(false)
	for i, err := range send() {
		if errors.Is(err, errMute) {
			t.Errorf("way %d is still closed", i)
		}
	}
	if inner.sent != 1 {
		t.Errorf("%d sent", inner.sent)
	}
}

// Raft takes nothing while it waits for its disk, and a member that is to stop waits for all it does.
func TestStandingEndsWithItsContextWhileRaftStandsStill(t *testing.T) {
	layer, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := newRaftTransport(layer)
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	stand := func() { done <- tr.standNow(ctx, "lb1", "127.0.0.1:1") }
	ended := func(when string) {
		t.Helper()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", when, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it still stands, " + when)
		}
	}
	go stand()
	<-tr.Consumer()
	cancel()
	ended("taken and not answered")
	go stand()
	ended("not taken")
}
