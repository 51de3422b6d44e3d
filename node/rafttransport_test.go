package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

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
	send := func() error {
		return tr.AppendEntries("x", "127.0.0.1:1", &raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})
	}
	tr.mute(true)
	if err := send(); !errors.Is(err, errMute) {
		t.Errorf("it is heard: %v", err)
	}
	tr.mute(false)
	if err := send(); errors.Is(err, errMute) {
		t.Error("it is still silent")
	}
}

// Raft's pipelines hang when a follower refuses what is sent, and there is a second way out that a mute leader would have to close.
func TestRaftSendsOneRequestAtATime(t *testing.T) {
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := newRaftTransport(networkTransport(lonely{stream}, raftLogger(slog.New(slog.DiscardHandler))))
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := tr.AppendEntriesPipeline("x", "127.0.0.1:1"); !errors.Is(err, raft.ErrPipelineReplicationNotSupported) {
		t.Errorf("got %v", err)
	}
}

// lonely is a raft.StreamLayer that reaches nobody.
type lonely struct{ net.Listener }

func (lonely) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) {
	return nil, errors.New("nobody is there")
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
