package traffic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// ServerConfig says what a server is.
type ServerConfig struct {
	// Name is what the server calls itself to people, like ep1.
	Name string
	// Payload is the mean payload of an answer in bytes, 64 when 0, at most
	// 512.
	Payload int
	// Logger gets one line for each corrupt connection; slog.DiscardHandler
	// when nil.
	Logger *slog.Logger
}

// Server answers frames with frames of its own. A connection that begins with
// an HTTP request gets a line with the server's name instead, so that people
// can look with curl. It is safe for concurrent use.
type Server struct {
	cfg ServerConfig

	accepted, frames, corrupted atomic.Uint64
	open                        atomic.Int64
}

// ServerStats counts what a server has seen since it was made.
type ServerStats struct {
	Accepted  uint64 // connections
	Open      int64  // connections now
	Frames    uint64 // valid requests
	Corrupted uint64 // connections closed because their stream was corrupt
}

// defaultPayload is the mean payload of both directions.
const defaultPayload = 64

func checkPayloadMean(n int) (int, error) {
	if n == 0 {
		return defaultPayload, nil
	}
	if n < 0 || n > maxPayload/2 {
		return 0, fmt.Errorf("payload of %d bytes: want 1 to %d", n, maxPayload/2)
	}
	return n, nil
}

// NewServer returns a server for cfg.
func NewServer(cfg ServerConfig) (*Server, error) {
	var err error
	if cfg.Payload, err = checkPayloadMean(cfg.Payload); err != nil {
		return nil, fmt.Errorf("traffic server: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg}, nil
}

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	return ServerStats{
		Accepted: s.accepted.Load(), Open: s.open.Load(),
		Frames: s.frames.Load(), Corrupted: s.corrupted.Load(),
	}
}

// Serve serves ln until ctx ends, then closes it and all its connections and
// returns nil. A listener that fails ends it with an error.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var conns errgroup.Group
	for {
		c, err := ln.Accept()
		if err != nil {
			stopped := ctx.Err() != nil
			cancel()
			werr := conns.Wait()
			if stopped {
				return werr
			}
			return errors.Join(fmt.Errorf("accept traffic: %w", err), werr)
		}
		s.accepted.Add(1)
		conns.Go(func() error { s.serveConn(ctx, c); return nil })
	}
}

// serveConn serves one connection to its end.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	s.open.Add(1)
	defer s.open.Add(-1)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	err := s.answerAll(c)
	if errors.Is(err, ErrCorrupt) {
		s.corrupted.Add(1)
		s.cfg.Logger.Warn("corrupt connection", "from", c.RemoteAddr(), "err", err)
	}
}

// answerAll reads requests and answers each read's worth with one write.
func (s *Server) answerAll(c net.Conn) error {
	var (
		dec       = newDecoder()
		out       []byte
		conn, seq uint64
		known     bool
	)
	answer := func(f frame) error {
		if !known {
			conn, known = f.conn, true
		}
		if err := f.expect(kindRequest, conn, seq); err != nil {
			return err
		}
		s.frames.Add(1)
		a := frame{kind: kindAnswer, conn: conn, seq: seq, ack: f.seq}
		seq++
		out = appendFrame(out, a, a.payloadLen(s.cfg.Payload))
		return nil
	}
	for {
		n, err := c.Read(dec.space())
		if err != nil {
			return err
		}
		out = out[:0]
		bad := dec.filled(n, answer)
		if bad != nil && !known && isHTTP(dec.buf[:dec.have]) {
			return s.answerHTTP(c)
		}
		if bad != nil {
			a := frame{kind: kindAnswer, flags: flagCorrupt, conn: conn, seq: seq}
			out = appendFrame(out, a, 0)
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return errors.Join(bad, err)
			}
		}
		if bad != nil {
			return bad
		}
	}
}

// isHTTP says whether a stream that is none of ours begins like a request of
// curl or a browser.
func isHTTP(b []byte) bool {
	return bytes.HasPrefix(b, []byte("GET ")) || bytes.HasPrefix(b, []byte("HEAD "))
}

// answerHTTP says who is there and where the connection came from.
func (s *Server) answerHTTP(c net.Conn) error {
	body := fmt.Sprintf("%s here; you come from %s\n", s.cfg.Name, c.RemoteAddr())
	_, err := io.WriteString(c, fmt.Sprintf("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body))
	return err
}

// Exchange sends one frame over a fresh connection and checks the answer. The
// caller sets the deadline of c and closes it.
func Exchange(c net.Conn, conn uint64) error {
	f := frame{kind: kindRequest, conn: conn}
	if _, err := c.Write(appendFrame(nil, f, f.payloadLen(defaultPayload))); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	var head [headerSize]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[6:]))
	if n > maxPayload {
		return fmt.Errorf("read answer: %w: payload of %d bytes", ErrCorrupt, n)
	}
	b := append(head[:], make([]byte, n+trailerSize)...)
	if _, err := io.ReadFull(c, b[headerSize:]); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	a, _, err := parseFrame(b)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if a.flags&flagCorrupt != 0 {
		return fmt.Errorf("the server says: %w", ErrCorrupt)
	}
	return a.expect(kindAnswer, conn, 0)
}
