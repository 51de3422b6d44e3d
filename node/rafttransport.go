package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// raftTransport is Raft's own transport with one more way in: a node can tell
// itself what a leader that hands over would tell it. Embedding keeps everything
// else, the fast path of heartbeats included.
type raftTransport struct {
	*raft.NetworkTransport
	rpcs chan raft.RPC
	done chan struct{}
	mum  atomic.Bool // see mute
	once sync.Once
	wait sync.WaitGroup
}

// newRaftTransport passes on what inner receives until Close.
func newRaftTransport(inner *raft.NetworkTransport) *raftTransport {
	t := &raftTransport{NetworkTransport: inner, rpcs: make(chan raft.RPC), done: make(chan struct{})}
	t.wait.Go(func() {
		for {
			select {
			case <-t.done:
				return
			case rpc := <-inner.Consumer():
				if !t.pass(rpc) {
					return
				}
			}
		}
	})
	return t
}

// Consumer implements raft.Transport.
func (t *raftTransport) Consumer() <-chan raft.RPC { return t.rpcs }

func (t *raftTransport) pass(rpc raft.RPC) bool {
	select {
	case t.rpcs <- rpc:
		return true
	case <-t.done:
		return false
	}
}

// Close implements raft.WithClose.
func (t *raftTransport) Close() error {
	t.once.Do(func() { close(t.done) })
	t.wait.Wait()
	return t.NetworkTransport.Close()
}

// standNow has this node stand for election at once, as if its leader had handed
// over to it: it asks for votes without asking first whether it would get them, and
// voters answer although they have not missed their leader yet. Raft's safety does
// not depend on when somebody stands; whether it is wise is the caller's business.
// Raft may be waiting for its disk: then this waits, until ctx ends.
func (t *raftTransport) standNow(ctx context.Context, id, address string) error {
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{
		Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: t.EncodePeer(raft.ServerID(id), raft.ServerAddress(address)),
		}},
		RespChan: answer,
	}
	select {
	case t.rpcs <- rpc:
	case <-ctx.Done():
		return fmt.Errorf("stand for election: %w", ctx.Err())
	case <-t.done:
		return fmt.Errorf("stand for election: %w", raft.ErrTransportShutdown)
	}
	select {
	case a := <-answer:
		return a.Error
	case <-ctx.Done():
		return fmt.Errorf("stand for election: %w", ctx.Err())
	case <-t.done:
		return fmt.Errorf("stand for election: %w", raft.ErrTransportShutdown)
	}
}

const (
	// raftPool is how many connections to each node are kept for what is asked next.
	raftPool = 3
	// freshTrouble is how soon a connection fails that has been dead before it was used.
	freshTrouble = 50 * time.Millisecond
)

// RequestVote implements raft.Transport. A connection that was kept may be of an earlier life of the target, which is found by using
// it; and who asks for a vote asks once, and without it waits for an election timeout. So it is asked for again over another
// connection; a voter gives the same answer to the same candidate.
func (t *raftTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return pastStale(func() error { return t.NetworkTransport.RequestVote(id, target, args, resp) })
}

// RequestPreVote implements raft.WithPreVote, as RequestVote.
func (t *raftTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return pastStale(func() error { return t.NetworkTransport.RequestPreVote(id, target, args, resp) })
}

// pastStale asks until there is an answer, or so often that no kept connection can be left, or until one fails so late that the
// target, and not the connection, is at fault.
func pastStale(ask func() error) error {
	for left := raftPool; ; left-- {
		began := time.Now()
		err := ask()
		if err == nil || left == 0 || time.Since(began) > freshTrouble {
			return err
		}
	}
}

// errMute is what a leader gets from its own transport while it is to be silent.
var errMute = errors.New("silent until the disk takes writes again")

// mute keeps this node from telling the others that it leads, or ends that. Whoever
// hears no leader elects another.
func (t *raftTransport) mute(on bool) { t.mum.Store(on) }

// AppendEntries implements raft.Transport; heartbeats go this way too.
func (t *raftTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if t.mum.Load() {
		return errMute
	}
	return t.NetworkTransport.AppendEntries(id, target, args, resp)
}
