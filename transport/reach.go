package transport

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// HostAlive reports whether the kernel of the machine at addr (host:port, its
// cluster port) still answers. It opens a raw TCP connection and closes it at
// once: connected or refused, either way a kernel answered; silence, or a
// router's "unreachable", is no answer. So it tells a daemon that crashed or was
// stopped (the kernel refuses, or completes the handshake for it) from a machine
// that is dead or cut off.
//
// Three attempts start 0, 60 and 120 ms into the call, because a SYN that is lost
// is repeated by the kernel only after a second; the first answer decides. ctx
// bounds the whole call: give it 200 ms and more. A false answer may also mean
// that this node's own network is down: ask it about a single machine only when
// others are heard.
func HostAlive(ctx context.Context, addr string) bool {
	const attempts, stagger = 3, 60 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var alive atomic.Bool
	var g errgroup.Group
	for i := range attempts {
		g.Go(func() error {
			if i > 0 && !pause(ctx, time.Duration(i)*stagger) {
				return nil
			}
			if kernelAnswers(ctx, addr) {
				alive.Store(true)
				cancel()
			}
			return nil
		})
	}
	_ = g.Wait() // the attempts return no errors
	return alive.Load()
}

func kernelAnswers(ctx context.Context, addr string) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = conn.Close()
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
