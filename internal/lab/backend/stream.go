package backend

import (
	"context"
	"net"
	"net/http"
	"time"
)

// family names a protocol with the family of the server's address.
func (s *Server) family(protocol string) string {
	if s.cfg.At.Addr().Is6() {
		return protocol + "6"
	}
	return protocol + "4"
}

// openStream listens by TCP for everything that is built on it.
func (s *Server) openStream() (func(context.Context) error, error) {
	ln, err := net.ListenTCP(s.family("tcp"), net.TCPAddrFromAddrPort(s.cfg.At))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		moody := &listener{TCPListener: ln, server: s, ctx: ctx}
		switch s.cfg.Kind {
		case HTTP, HTTPS, GRPC:
			return s.serveHTTP(ctx, moody)
		default:
			return s.traffic.Serve(ctx, moody)
		}
	}, nil
}

// listener accepts connections that behave as the server does.
type listener struct {
	*net.TCPListener
	server *Server
	ctx    context.Context // of the serving
}

// Accept closes the connections of a TCP server that fails as soon as they are
// there.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		if l.server.cfg.Kind != TCP || !l.server.fails() {
			return &conn{TCPConn: c, l: l}, nil
		}
		_ = c.SetLinger(0) // it is closed anyway; then by a FIN
		c.Close()
	}
}

// conn hands on what it read when the server has time for it.
type conn struct {
	*net.TCPConn
	l *listener
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if err != nil {
		return n, err
	}
	if err := c.l.server.hang(c.l.ctx); err != nil {
		return 0, err
	}
	if c.l.server.cfg.Kind == TCP {
		err = c.l.server.dawdle(c.l.ctx)
	}
	return n, err
}

// serveHTTP serves HTTP, HTTPS and gRPC until ctx ends.
func (s *Server) serveHTTP(ctx context.Context, ln net.Listener) error {
	handler := http.Handler(http.HandlerFunc(s.answerHTTP))
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	if s.cfg.Kind == GRPC {
		handler = http.HandlerFunc(s.answerGRPC)
		protocols = &http.Protocols{}
		protocols.SetHTTP2(s.cfg.TLS)
		protocols.SetUnencryptedHTTP2(!s.cfg.TLS)
	}
	srv := &http.Server{
		Handler: handler, Protocols: protocols, ReadHeaderTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    discardLog(),
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	defer srv.Close()
	var err error
	if s.cert != nil {
		srv.TLSConfig = s.tlsConfig()
		err = srv.ServeTLS(ln, "", "")
	} else {
		err = srv.Serve(ln)
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
