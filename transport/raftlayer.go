package transport

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// RaftLayer carries Raft's streams over a Mux. It is the only place here that
// knows hashicorp/raft, and of that only raft.StreamLayer.
type RaftLayer struct {
	// NodeName, when set, gives the name of the member that owns a Raft address,
	// or "" when it is not known. A connection then has to reach that very node,
	// so that two addresses that lead to one machine by mistake cannot give it
	// two votes. Set it before the layer is used; it must not block.
	NodeName func(addr string) string

	net.Listener
	mux  *Mux
	addr net.Addr
}

var _ raft.StreamLayer = (*RaftLayer)(nil)

// NewRaftLayer registers Raft with the Mux (so call it before Mux.Run). addr is
// the address this node is known by in the Raft configuration.
func NewRaftLayer(m *Mux, addr net.Addr) *RaftLayer {
	return &RaftLayer{Listener: m.Listen(ALPNRaft), mux: m, addr: addr}
}

// Addr returns the advertised address.
func (l *RaftLayer) Addr() net.Addr { return l.addr }

// Dial opens a stream to another member.
func (l *RaftLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.Background(), func() {}
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	want := ""
	if l.NodeName != nil {
		want = l.NodeName(string(address))
	}
	return l.mux.Dial(ctx, string(address), ALPNRaft, want)
}
