package benchtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

// server is the far end of all workloads.
type server struct {
	echo, udp int          // sockets
	bulk      net.Listener // of the swallowing port
	swallowed atomic.Uint64
}

// newServer opens its sockets on h.
func newServer(h *lab.Host) (*server, error) {
	s := &server{echo: -1, udp: -1}
	err := h.Do(func() (err error) {
		if s.echo, err = listenTCP(ConnPort); err != nil {
			return err
		}
		s.udp, err = listenUDP(UDPPort)
		return err
	})
	if err == nil {
		s.bulk, err = h.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), BulkPort))
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open sockets of the server: %w", err)
	}
	return s, nil
}

func (s *server) close() {
	for _, fd := range []int{s.echo, s.udp} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if s.bulk != nil {
		s.bulk.Close()
	}
}

// run serves until ctx ends and closes the sockets.
func (s *server) run(ctx context.Context) error {
	defer s.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.runEcho(ctx) })
	g.Go(func() error { return s.runUDP(ctx) })
	g.Go(func() error { return s.runBulk(ctx) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// runEcho answers the first byte of each connection and closes it after the
// client has.
func (s *server) runEcho(ctx context.Context) error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.add(s.echo, int32(s.echo), unix.EPOLLIN); err != nil {
		return err
	}
	open := map[int]bool{}
	defer func() {
		for fd := range open {
			unix.Close(fd)
		}
	}()
	buf := make([]byte, 64)
	for ctx.Err() == nil {
		events, err := p.wait()
		if err != nil {
			return err
		}
		for _, ev := range events {
			fd := int(ev.Fd)
			if fd == s.echo {
				if err := acceptAll(p, fd, open); err != nil {
					return err
				}
			} else if answer(fd, buf) {
				unix.Close(fd)
				delete(open, fd)
			}
		}
	}
	return nil
}

// acceptAll takes every waiting connection.
func acceptAll(p *poller, listener int, open map[int]bool) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.ECONNABORTED || err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		open[fd] = true
		if err := p.add(fd, int32(fd), unix.EPOLLIN); err != nil {
			return err
		}
	}
}

// answer echoes what there is and says whether the connection is over.
func answer(fd int, buf []byte) (over bool) {
	n, err := unix.Read(fd, buf)
	if err == unix.EAGAIN || err == unix.EINTR {
		return false
	}
	if err == nil && n > 0 {
		_, err = unix.Write(fd, buf[:n])
	}
	return err != nil || n == 0
}

// runBulk swallows what comes and counts it.
func (s *server) runBulk(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.bulk.Close() })
	defer stop()
	var g errgroup.Group
	for {
		c, err := s.bulk.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				err = nil
			}
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			buf := make([]byte, bulkBuffer)
			for {
				n, err := c.Read(buf)
				s.swallowed.Add(uint64(n))
				if err != nil {
					return nil // the client's end, or ours
				}
			}
		})
	}
}

// listenUDP opens a socket on all addresses that tells which one was meant.
func listenUDP(port uint16) (int, error) {
	fd, err := socket(unix.SOCK_DGRAM)
	if err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(int64(pollMillis * time.Millisecond))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}))
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on udp port %d: %w", port, err)
	}
	return fd, nil
}

// runUDP answers each datagram from the address it was sent to.
func (s *server) runUDP(ctx context.Context) error {
	buf, oob := make([]byte, 2048), make([]byte, 64)
	for ctx.Err() == nil {
		n, oobn, _, from, err := unix.Recvmsg(s.udp, buf, oob, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		reply, err := replySource(oob[:oobn])
		if err != nil {
			return err
		}
		// A datagram that cannot be sent is a lost one: the client asks again.
		_ = unix.Sendmsg(s.udp, buf[:n], reply, from, 0)
	}
	return nil
}

// replySource turns a received IP_PKTINFO into one to send with (ip(7)).
func replySource(oob []byte) ([]byte, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read destination of datagram: %w", err)
	}
	const size = 12 // struct in_pktinfo: interface, local address, destination
	for _, m := range msgs {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= size {
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}), nil
		}
	}
	return nil, io.ErrUnexpectedEOF
}
