package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
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

// A voter that died and is back has no use for the connections of its first life. Who asks it for a vote gets an answer all
// the same, at once.
func TestAVoteIsGotPastConnectionsOfAnEarlierLife(t *testing.T) {
	asker := overTCP(t, listenTCP(t, "127.0.0.1:0"))
	first := listenTCP(t, "127.0.0.1:0")
	voter := overTCP(t, first)
	target, over := raft.ServerAddress(first.Addr().String()), make(chan struct{})
	ask := func() error {
		var resp raft.RequestVoteResponse
		if err := asker.RequestVote("voter", target, &raft.RequestVoteRequest{Term: 7}, &resp); err != nil {
			return err
		} else if !resp.Granted {
			return errors.New("refused")
		}
		return nil
	}
	go grant(voter, over)
	var asked errgroup.Group
	for range raftPool { // at once, so that each has a connection of its own
		asked.Go(ask)
	}
	if err := asked.Wait(); err != nil {
		t.Fatal(err)
	}
	close(over)
	if err := voter.Close(); err != nil {
		t.Fatal(err)
	}
	first.end()
	again := overTCP(t, listenTCP(t, string(target)))
	stop := make(chan struct{})
	defer close(stop)
	go grant(again, stop)
	if err := ask(); err != nil {
		t.Errorf("the voter is back, and its vote is not got: %v", err)
	}
}

// grant gives its vote to everybody until over.
func grant(voter *raftTransport, over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case rpc := <-voter.Consumer():
			rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
		}
	}
}

// mortal is a raft.StreamLayer over TCP all of whose connections can be ended, as by the death of its process.
type mortal struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func listenTCP(t *testing.T, address string) *mortal {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return &mortal{Listener: l}
}

func (m *mortal) Accept() (net.Conn, error) {
	c, err := m.Listener.Accept()
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.conns = append(m.conns, c)
	}
	return c, err
}

func (m *mortal) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(address), timeout)
}

func (m *mortal) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		_ = c.Close()
	}
}

func overTCP(t *testing.T, layer *mortal) *raftTransport {
	t.Helper()
	tr := newRaftTransport(networkTransport(layer, raftLogger(slog.New(slog.DiscardHandler))))
	t.Cleanup(func() {
		layer.end()
		if err := tr.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return tr
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
