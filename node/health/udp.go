package health

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// udpKind sends a datagram and wants one back. The socket is connected, so that nobody else's datagram
// is read, and an ICMP error is the end at once.
type udpKind struct{}

func (udpKind) begin(l *loop, o *op) (outcome, bool) {
	if err := l.dial(o, unix.SOCK_DGRAM, unix.EPOLLIN); err != nil {
		return o.judge(err), true
	}
	if err := unix.Send(o.fd, []byte(o.check.probe.Send), 0); err != nil {
		return o.udpError(err), true
	}
	return outcome{}, false
}

func (udpKind) ready(l *loop, o *op, _ uint32) (outcome, bool) {
	for {
		n, err := unix.Read(o.fd, l.buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return outcome{}, false
		case err != nil:
			return o.udpError(err), true
		default:
			return o.check.answered(string(l.buf[:n])), true
		}
	}
}

func (udpKind) late(_ *loop, o *op) (outcome, bool) { return o.noAnswer(), true }

// answered judges an answer to a datagram.
func (c *check) answered(datagram string) outcome {
	if !strings.Contains(datagram, c.probe.Body) {
		return failed("the answer does not contain %q", c.probe.Body)
	}
	return pass
}

func (o *op) udpError(err error) outcome {
	if errors.Is(err, unix.ECONNREFUSED) {
		return failed("port unreachable")
	}
	return o.judge(err)
}
