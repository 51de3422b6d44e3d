package node

import (
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// raftTransport is Raft's own transport with one more way in: a node can tell
// itself what a leader that hands over would tell it. Embedding keeps everything
// else, the fast path of heartbeats included.
type raftTransport struct {
	*raft.NetworkTransport
	rpcs chan raft.RPC
	done chan struct{}
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
func (t *raftTransport) standNow(id, address string) error {
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{
		Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: t.EncodePeer(raft.ServerID(id), raft.ServerAddress(address)),
		}},
		RespChan: answer,
	}
	if !t.pass(rpc) {
		return fmt.Errorf("stand for election: %w", raft.ErrTransportShutdown)
	}
	select {
	case a := <-answer:
		return a.Error
	case <-t.done:
		return fmt.Errorf("stand for election: %w", raft.ErrTransportShutdown)
	}
}
