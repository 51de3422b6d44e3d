package health

import "golang.org/x/sys/unix"

// tcpKind opens a connection and resets it.
type tcpKind struct{}

func (tcpKind) begin(l *loop, o *op) (outcome, bool) {
	if err := l.dial(o, unix.SOCK_STREAM, unix.EPOLLOUT); err != nil {
		return o.judge(err), true
	}
	return outcome{}, false
}

func (tcpKind) ready(_ *loop, o *op, events uint32) (outcome, bool) {
	if err := o.connected(events); err != nil {
		return o.judge(err), true
	}
	return pass, true
}

func (tcpKind) late(_ *loop, o *op) (outcome, bool) { return o.noAnswer(), true }
