package backend

import (
	"context"
	"net"
	"net/netip"

	"golang.org/x/sync/errgroup"
)

// openUDP answers datagrams.
func (s *Server) openUDP() (func(context.Context) error, error) {
	c, err := net.ListenUDP(s.family("udp"), net.UDPAddrFromAddrPort(s.cfg.At))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { c.Close() })()
		var answers errgroup.Group
		buf := make([]byte, 65536)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if ctx.Err() != nil {
				return answers.Wait()
			}
			if err != nil {
				continue // an ICMP error of a client that went away
			}
			answers.Go(func() error { s.answerUDP(ctx, c, from); return nil })
		}
	}, nil
}

// answerUDP answers one datagram, unless the server hangs: what waits then is as
// good as lost.
func (s *Server) answerUDP(ctx context.Context, c *net.UDPConn, to netip.AddrPort) {
	b, _ := s.behaviour()
	if b.Mode == Hangs || s.dawdle(ctx) != nil {
		return
	}
	body := s.cfg.Body
	if s.fails() {
		body = "this is no good answer\n"
	} else {
		s.requests.Add(1)
	}
	_, _ = c.WriteToUDPAddrPort([]byte(body), to) // a datagram may be lost
}
