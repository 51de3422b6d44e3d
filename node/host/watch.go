package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchWindow is how long Watch gathers after the first message, so that a
	// hundred addresses set in a row are one change.
	watchWindow = 10 * time.Millisecond
	// watchBuffer is the socket's receive buffer in bytes, asked for, not insisted on.
	watchBuffer = 1 << 20
	// watchRetry is the pause before subscribing again after a failure other than
	// a full buffer, so that a lasting one does not spin.
	watchRetry = time.Second
)

// watchGroups are the rtnetlink multicast groups, as the bit mask bind takes.
const watchGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// Change says which kinds of things have changed, not how: whoever cares reads
// the present state.
type Change struct {
	Links, Addresses, Neighbours, Routes bool
}

var everything = Change{Links: true, Addresses: true, Neighbours: true, Routes: true}

// Watch calls changed whenever links, addresses, neighbours or routes of the
// namespace have changed, until ctx ends; then it returns nil. Changes within
// 10 ms are one call.
//
// The first call comes as soon as the subscription stands, with everything set,
// and so does one after each new subscription: the kernel drops messages when the
// reader is slow (ENOBUFS), and what was dropped is unknown. So whoever acts on
// each call by reading the state misses nothing.
//
// changed runs on Watch's goroutine and may block; messages wait in the socket
// meanwhile. Watch returns an error only if the first subscription fails.
func (h *Host) Watch(ctx context.Context, changed func(Change)) error {
	first := true
	for ctx.Err() == nil {
		socket, err := subscribe()
		if err != nil && first {
			return err
		}
		first = false
		if err == nil {
			changed(everything)
			err = watchSocket(ctx, socket, changed)
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.ENOBUFS) {
			h.logger.Debug("netlink messages lost, everything is read again")
			continue
		}
		h.logger.Warn("netlink subscription failed, subscribing again", "err", err)
		wait(ctx, watchRetry)
	}
	return nil
}

// subscribe opens a non-blocking netlink socket joined to watchGroups.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket to watch: %w", err)
	}
	// Beyond net.core.rmem_max needs CAP_NET_ADMIN; without it a smaller buffer
	// only means that everything is read again more often.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: watchGroups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("join netlink groups: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// watchSocket reads socket until it fails or ctx ends, and closes it.
func watchSocket(ctx context.Context, socket *os.File, changed func(Change)) error {
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	raw, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("read netlink socket: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		if err := socket.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("read netlink socket: %w", err)
		}
		var seen Change
		err := receive(raw, buf, &seen)
		if err == nil {
			err = gather(socket, raw, buf, &seen)
		}
		if seen != (Change{}) {
			changed(seen)
		}
		if err != nil {
			return err
		}
	}
}

// gather adds what else arrives within watchWindow.
func gather(socket *os.File, raw syscall.RawConn, buf []byte, seen *Change) error {
	if err := socket.SetReadDeadline(time.Now().Add(watchWindow)); err != nil {
		return fmt.Errorf("read netlink socket: %w", err)
	}
	for {
		err := receive(raw, buf, seen)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// receive waits for one datagram and notes in seen what it tells.
func receive(raw syscall.RawConn, buf []byte, seen *Change) error {
	var n int
	var from unix.Sockaddr
	var errno error
	err := raw.Read(func(fd uintptr) bool {
		for {
			if n, from, errno = unix.Recvfrom(int(fd), buf, 0); errno != unix.EINTR {
				return errno != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, errno); err != nil {
		return fmt.Errorf("read netlink socket: %w", err)
	}
	if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
		return nil // not from the kernel: any process may send to us
	}
	return note(buf[:n], seen)
}

// note reads the message types of one datagram.
func note(b []byte, seen *Change) error {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return fmt.Errorf("parse netlink message: %w", err)
	}
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			seen.Links = true
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			seen.Addresses = true
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			seen.Neighbours = true
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			seen.Routes = true
		}
	}
	return nil
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
