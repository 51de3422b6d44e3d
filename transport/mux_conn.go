package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Settings by which a dead peer is noticed. A peer that vanished (power loss,
// cable) sends no FIN; without these a read would wait for two hours and a write
// be retried for a quarter of one. With them both ends learn of it within about
// five seconds: keep-alives find it on an idle connection, TCP_USER_TIMEOUT on
// one with unacknowledged data. Five seconds is long enough to ride out a VM's
// live migration or a switch that re-learns; faster verdicts are gossip's work.
const (
	keepAliveIdle     = 2 * time.Second
	keepAliveInterval = time.Second
	keepAliveCount    = 3
	userTimeout       = 5 * time.Second
)

// tuneConn applies those settings. Anything but TCP (a pipe in a test) is left as
// it is.
func tuneConn(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	})
	if err != nil {
		return fmt.Errorf("set keep-alive: %w", err)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("set TCP user timeout: %w", err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("set TCP user timeout: %w", err)
	}
	return nil
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// connTable knows every live connection and whose it is.
type connTable struct {
	mu     sync.Mutex
	conns  map[*trackedConn]peerID // value: whose it is, zero until known
	closed bool
}

// peerID is a verified peer: its name, and the hash of its certificate's key.
type peerID struct {
	name string
	key  [32]byte
}

// trackedConn is the raw connection below a tls.Conn. Tracking sits there, so
// that closing from outside is at once: tls.Conn.Close may wait to send an alert.
type trackedConn struct {
	net.Conn
	table   *connTable
	once    sync.Once
	onClose func() // guarded by table.mu
	err     error
}

// Close closes the connection and forgets it.
func (c *trackedConn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.table.mu.Lock()
		delete(c.table.conns, c)
		after := c.onClose
		c.table.mu.Unlock()
		if after != nil {
			after()
		}
	})
	return c.err
}

// track takes the connection into the table. After closeAll it closes the
// connection instead and returns net.ErrClosed.
func (t *connTable) track(raw net.Conn) (*trackedConn, error) {
	c := &trackedConn{Conn: raw, table: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = raw.Close()
		return nil, net.ErrClosed
	}
	if t.conns == nil {
		t.conns = map[*trackedConn]peerID{}
	}
	t.conns[c] = peerID{}
	return c, nil
}

// name notes whose the connection is. It comes before the question whether that
// node is a member, so that Disconnect, which comes after the change of
// membership, either finds the connection here or the question is answered no.
func (t *connTable) name(c *trackedConn, peer peerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, live := t.conns[c]; live {
		t.conns[c] = peer
	}
}

// afterClose has f called once when the connection is closed. It reports false,
// and does not call f, when the connection is closed already.
func (t *connTable) afterClose(c *trackedConn, f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, live := t.conns[c]
	if live {
		c.onClose = f
	}
	return live
}

func (t *connTable) closePeer(peer peerID) int {
	if peer.name == "" {
		return 0
	}
	return t.closeWhere(func(p peerID) bool { return p == peer }, false)
}

func (t *connTable) closeAll() { t.closeWhere(func(peerID) bool { return true }, true) }

func (t *connTable) closeWhere(match func(peer peerID) bool, final bool) int {
	t.mu.Lock()
	if final {
		t.closed = true
	}
	var hit []*trackedConn
	for c, peer := range t.conns {
		if match(peer) {
			hit = append(hit, c)
		}
	}
	t.mu.Unlock()
	for _, c := range hit {
		_ = c.Close()
	}
	return len(hit)
}

// acceptedConn is what a muxListener yields. It hides that it is a *tls.Conn: of
// one of those net/http would drop the connection, as it does with every ALPN
// name it does not know. Of any other connection with a ConnectionState method it
// takes the TLS state for Request.TLS.
type acceptedConn struct{ *tls.Conn }

// muxListener is the net.Listener of one protocol.
type muxListener struct {
	addr net.Addr
	ch   chan *tls.Conn
	done chan struct{}
	once sync.Once
}

var _ net.Listener = (*muxListener)(nil)

func newMuxListener(addr net.Addr) *muxListener {
	return &muxListener{addr: addr, ch: make(chan *tls.Conn), done: make(chan struct{})}
}

// Accept waits for the next connection of this protocol.
func (l *muxListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return acceptedConn{c}, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	}
}

// Close ends Accept and refuses further connections of this protocol.
func (l *muxListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr returns the address of the one port.
func (l *muxListener) Addr() net.Addr { return l.addr }

func (l *muxListener) closed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// deliver hands the connection to Accept. It reports false when nobody took it
// in time; the caller then still owns it.
func (l *muxListener) deliver(ctx context.Context, conn *tls.Conn, patience time.Duration) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case l.ch <- conn:
		return true
	case <-l.done:
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}
