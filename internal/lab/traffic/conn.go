package traffic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxUnanswered bounds what a client sends into a silent connection: at the
// usual interval a minute's worth. It keeps a dead one from eating memory.
const maxUnanswered = 600

// clientConn is one long-lived connection. The sender and the reader share it
// under mu.
type clientConn struct {
	id  uint64
	c   net.Conn
	raw syscall.RawConn

	// Of the sender alone.
	due    time.Duration // when the next frame is to be sent, since the base
	unsent []byte        // rest of a frame the socket had no room for

	mu      sync.Mutex
	sent    uint64        // frames sent; the next one's number
	acked   uint64        // answers received
	last    time.Duration // time of the newest answer, since the base
	maxGap  time.Duration // within the current window
	mark    uint64        // progress means: acked exceeds it
	lost    error         // why the connection is no more, nil while it lives
	lostAt  time.Duration // when that was seen
	corrupt bool
}

// newClientConn wraps an open connection.
func newClientConn(id uint64, c net.Conn, now time.Duration) (*clientConn, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("traffic needs plain sockets, not %T", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reach the socket: %w", err)
	}
	return &clientConn{id: id, c: c, raw: raw, last: now}, nil
}

// send sends the next frame without ever blocking: one sender serves all
// connections, and a full socket must not hold up the others. What does not
// fit goes first the next time.
func (cc *clientConn) send(scratch []byte, payload int) ([]byte, error) {
	cc.mu.Lock()
	full, dead := cc.sent-cc.acked >= maxUnanswered, cc.lost != nil
	f := frame{kind: kindRequest, conn: cc.id, seq: cc.sent}
	if !full && !dead && len(cc.unsent) == 0 {
		cc.sent++
	}
	cc.mu.Unlock()
	if dead || (full && len(cc.unsent) == 0) {
		return scratch, nil
	}
	b := cc.unsent
	if len(b) == 0 {
		scratch = appendFrame(scratch[:0], f, f.payloadLen(payload))
		b = scratch
	}
	n, err := cc.tryWrite(b)
	if err != nil {
		return scratch, err
	}
	// A copy: scratch is used by the next connection.
	cc.unsent = append([]byte(nil), b[n:]...)
	return scratch, nil
}

// tryWrite writes what the socket takes now.
func (cc *clientConn) tryWrite(b []byte) (n int, err error) {
	rerr := cc.raw.Write(func(fd uintptr) bool {
		n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return true
	})
	switch {
	case rerr != nil:
		return 0, rerr
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, err
	}
	return n, nil
}

// received takes one answer.
func (cc *clientConn) received(f frame, now time.Duration) error {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if f.flags&flagCorrupt != 0 {
		return fmt.Errorf("%w: so says the server", ErrCorrupt)
	}
	if err := f.expect(kindAnswer, cc.id, cc.acked); err != nil {
		return err
	}
	if f.ack != f.seq || f.seq >= cc.sent {
		return fmt.Errorf("%w: answer %d to frame %d of %d", ErrCorrupt, f.seq, f.ack, cc.sent)
	}
	cc.acked++
	cc.maxGap = max(cc.maxGap, now-cc.last)
	cc.last = now
	return nil
}

// lose notes why the connection ended; the first reason stays.
func (cc *clientConn) lose(err error, now time.Duration) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.lost == nil {
		cc.lost, cc.lostAt = err, now
		cc.corrupt = errors.Is(err, ErrCorrupt)
	}
	cc.c.Close()
}

// reason is why the connection was lost, without what differs from one
// connection to the next, so that equal reasons can be counted.
func (cc *clientConn) reason() string {
	var op *net.OpError
	switch {
	case errors.Is(cc.lost, io.EOF):
		return "closed by the other side"
	case errors.As(cc.lost, &op):
		return op.Err.Error()
	}
	return cc.lost.Error()
}

// alive says whether the connection has not been lost.
func (cc *clientConn) alive() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.lost == nil
}

// pending says whether a living connection still owes its progress since the
// mark.
func (cc *clientConn) pending() bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	return cc.lost == nil && cc.acked <= cc.mark
}
