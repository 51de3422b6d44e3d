package transport

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// replTolerate lets the peer keep its receive window shut for as long as limit.
//
// TCP_USER_TIMEOUT, which the cluster's port sets low, also counts while a
// living peer's kernel answers every probe with a window of zero. That is what a
// sink that is at work for seconds looks like, and cutting it off would only
// make it begin again. Death is noticed by the stream's own silence instead.
// Connections that are not TCP below are left as they are.
func replTolerate(conn net.Conn, limit time.Duration) error {
	tcp, ok := replRawConn(conn).(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("set TCP user timeout: %w", err)
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
	if err := errors.Join(err, setErr); err != nil {
		return fmt.Errorf("set TCP user timeout: %w", err)
	}
	return nil
}

// replRawConn is the connection at the bottom of TLS and bookkeeping.
func replRawConn(conn net.Conn) net.Conn {
	for {
		switch c := conn.(type) {
		case *trackedConn:
			conn = c.Conn
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return conn
		}
	}
}

// replHardClose closes a connection. Closing TLS tries for seconds to say
// goodbye; on a broken stream that would only hold up the next attempt, so what
// lies below TLS is closed first.
func replHardClose(conn net.Conn, broken bool) {
	if inner, ok := conn.(interface{ NetConn() net.Conn }); ok && broken {
		_ = inner.NetConn().Close()
	}
	_ = conn.Close()
}
