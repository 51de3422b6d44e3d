package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// errNoCertificate: the other side showed no certificate where one is needed.
var errNoCertificate = errors.New("the peer showed no certificate")

// ErrRefused is wrapped by Dial and DialJoin when the other side completed the
// handshake and then declined the connection; the text gives its reason.
var ErrRefused = errors.New("refused by the peer")

// The greeting. In TLS 1.3 a client's handshake is complete before the server has
// looked at the client's certificate, so a refusal would surface later, as a
// broken first read in the subsystem. Therefore the server sends one byte when it
// has admitted the connection: 0 = welcome, n = refused, n bytes of reason follow.
const (
	greetingWelcome = 0
	greetingMaxText = 255
)

// noProtocol is an ALPN name that nobody offers in earnest.
const noProtocol = "pontoon-none"

// session is an admitted inbound connection.
type session struct {
	conn *tls.Conn
	alpn string
	peer peerID // its name is empty on ALPNJoin
}

// handshake runs TLS and admission on an accepted connection. On an error the
// caller closes conn; the session then says whose it was, if that was proved.
func (m *Mux) handshake(ctx context.Context, conn *trackedConn) (session, error) {
	if err := tuneConn(conn.Conn); err != nil {
		return session{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	tc := tls.Server(conn, m.serverConfig())
	if err := tc.HandshakeContext(ctx); err != nil {
		return session{}, fmt.Errorf("handshake: %w", err)
	}
	s := session{conn: tc, alpn: tc.ConnectionState().NegotiatedProtocol}
	s.peer.name, _ = PeerOf(tc)
	s.peer.key, _ = PeerKey(tc)
	if err := markConn(conn.Conn, DSCPOf(s.alpn)); err != nil {
		return session{}, err
	}
	if err := tc.SetDeadline(time.Now().Add(m.cfg.HandshakeTimeout)); err != nil {
		return session{}, fmt.Errorf("handshake: %w", err)
	}
	if err := m.admit(conn, s); err != nil {
		return session{peer: s.peer}, errors.Join(err, writeGreeting(tc, err))
	}
	if err := writeGreeting(tc, nil); err != nil {
		return session{}, err
	}
	if err := tc.SetDeadline(time.Time{}); err != nil {
		return session{}, fmt.Errorf("handshake: %w", err)
	}
	return s, nil
}

// admit decides about a connection whose TLS handshake succeeded.
func (m *Mux) admit(conn *trackedConn, s session) error {
	if !m.serves(s.alpn) {
		return fmt.Errorf("%s is not served here now", s.alpn)
	}
	if s.alpn == ALPNJoin {
		return m.admitJoin(conn)
	}
	m.conns.name(conn, s.peer)
	if err := m.cfg.Authorize(s.peer.name, s.peer.key); err != nil {
		return fmt.Errorf("node %s: %w", s.peer.name, err)
	}
	return nil
}

// admitJoin counts connections of strangers: they may come, but not in numbers
// that cost the cluster anything.
func (m *Mux) admitJoin(conn *trackedConn) error {
	done := func() { m.joins.Add(-1) }
	if m.joins.Add(1) > int64(m.cfg.MaxJoins) {
		done()
		return errors.New("too many nodes are joining at once; try again in a moment")
	}
	if !m.conns.afterClose(conn, done) {
		done()
		return net.ErrClosed
	}
	return nil
}

// serverConfig builds the TLS settings of one inbound connection. They depend on
// the protocol the client offers: exactly one is chosen here, and only that one
// is put into the settings, so that the rules it was admitted by and the protocol
// that is spoken cannot come apart.
func (m *Mux) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, alpn := range hello.SupportedProtos {
				if m.serves(alpn) {
					return m.serverConfigFor(alpn), nil
				}
			}
			if len(hello.SupportedProtos) == 0 {
				return nil, errors.New("the client names no protocol (ALPN)")
			}
			// No overlap: this makes TLS answer with the alert made for it
			// (RFC 7301, 3.2). Should a protocol come up meanwhile, the strict rules apply.
			return m.serverConfigFor(noProtocol), nil
		},
	}
}

func (m *Mux) serverConfigFor(alpn string) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{m.cfg.Identity.tlsCertificate()},
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true, // a removed node must not come back by resumption
	}
	if alpn == ALPNJoin {
		cfg.ClientAuth = tls.NoClientCert
		return cfg
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.ClientCAs = m.cfg.Identity.pool
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := verifyNode(cs.PeerCertificates, m.cfg.Identity.pool, x509.ExtKeyUsageClientAuth)
		return err
	}
	return cfg
}

// PeerOf returns the node name in the certificate of the other side of a
// connection made by this package. It reports false when the other side showed no
// certificate, as on an accepted ALPNJoin connection, or the connection is not
// from this package.
func PeerOf(conn net.Conn) (string, bool) {
	leaf := peerCertificate(conn)
	if leaf == nil {
		return "", false
	}
	name, err := certificateName(leaf)
	return name, err == nil
}

// PeerKey returns the SHA-256 of the SubjectPublicKeyInfo in the certificate of
// the other side (see Identity.Key). It reports false when PeerOf does.
func PeerKey(conn net.Conn) ([32]byte, bool) {
	if _, ok := PeerOf(conn); !ok {
		return [32]byte{}, false
	}
	return certificateKey(peerCertificate(conn)), true
}

// peerCertificate is what the other side showed, nil if nothing.
func peerCertificate(conn net.Conn) *x509.Certificate {
	tc, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil
	}
	certs := tc.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return nil
	}
	return certs[0]
}

func writeGreeting(conn net.Conn, refusal error) error {
	msg := []byte{greetingWelcome}
	if refusal != nil {
		text := refusal.Error()
		if len(text) > greetingMaxText {
			text = text[:greetingMaxText]
		}
		msg = append([]byte{byte(len(text))}, text...)
	}
	if _, err := conn.Write(msg); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	return nil
}

// readGreeting waits for the other side's verdict on the connection.
func readGreeting(conn net.Conn) error {
	var n [1]byte
	if _, err := io.ReadFull(conn, n[:]); err != nil {
		return fmt.Errorf("wait for the peer's admission: %w", err)
	}
	if n[0] == greetingWelcome {
		return nil
	}
	text := make([]byte, n[0])
	if _, err := io.ReadFull(conn, text); err != nil {
		return fmt.Errorf("%w: the reason was cut short: %w", ErrRefused, err)
	}
	return fmt.Errorf("%w: %q", ErrRefused, text)
}
