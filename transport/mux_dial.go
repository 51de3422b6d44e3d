package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// Errors of DialJoin, each with what to do about it in its text.
var (
	// ErrUnreachable: nothing answers at the address.
	ErrUnreachable = errors.New("not reachable; check the address, the port and firewalls between")
	// ErrNotPontoon: something answers, but no Pontoon node that takes joiners.
	ErrNotPontoon = errors.New("not a Pontoon node's cluster port; check the address and the port")
	// ErrWrongCA: a Pontoon node of another cluster, or somebody posing as one.
	ErrWrongCA = errors.New("the CA differs from the one in the token; the address or the token is of another cluster")
)

// Dial opens a mutually authenticated connection for one protocol. It verifies
// that the other side's certificate is of this cluster, that its name is wantNode
// (any member if that is empty), that Authorize accepts name and key, and waits
// until the other side has admitted this node. It is bounded by ctx and by DialTimeout.
// The connection is a *tls.Conn. A refusal by the other side wraps ErrRefused.
func (m *Mux) Dial(ctx context.Context, addr, alpn, wantNode string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.DialTimeout)
	defer cancel()
	raw, err := dialer(alpn).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s for %s: %w", addr, alpn, err)
	}
	conn, err := m.conns.track(raw)
	if err != nil {
		return nil, fmt.Errorf("dial %s for %s: %w", addr, alpn, err)
	}
	tc := tls.Client(conn, m.clientConfig(conn, alpn, wantNode))
	if err := greetedHandshake(ctx, raw, tc, alpn); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s for %s: %w", addr, alpn, err)
	}
	return tc, nil
}

// greetedHandshake does everything between TCP connect and first use.
func greetedHandshake(ctx context.Context, raw net.Conn, tc *tls.Conn, alpn string) error {
	if err := tuneConn(raw); err != nil {
		return err
	}
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if got := tc.ConnectionState().NegotiatedProtocol; got != alpn {
		return fmt.Errorf("handshake: the peer chose protocol %q", got)
	}
	// The greeting is read under ctx as well: cancelling it ends the read.
	stop := context.AfterFunc(ctx, func() { _ = tc.SetDeadline(time.Unix(1, 0)) })
	err := readGreeting(tc)
	if !stop() {
		return fmt.Errorf("wait for the peer's admission: %w", ctx.Err())
	}
	return err
}

// clientConfig builds the TLS settings of one outbound connection. The standard
// check wants a host name and compares it without regard to case; a node's name
// is neither, so the chain and the name are checked here instead, on every
// connection (there is no resumption: no session cache is set).
func (m *Mux) clientConfig(conn *trackedConn, alpn, wantNode string) *tls.Config {
	id := m.cfg.Identity
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		Certificates:       []tls.Certificate{id.tlsCertificate()},
		NextProtos:         []string{alpn},
		InsecureSkipVerify: true, // replaced by VerifyConnection, not left out
		VerifyConnection: func(cs tls.ConnectionState) error {
			name, err := verifyNode(cs.PeerCertificates, id.pool, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			peer := peerID{name, certificateKey(cs.PeerCertificates[0])}
			if wantNode != "" && name != wantNode {
				return fmt.Errorf("the node there is %s, not %s", name, wantNode)
			}
			m.conns.name(conn, peer)
			if err := m.cfg.Authorize(peer.name, peer.key); err != nil {
				return fmt.Errorf("node %s: %w", name, err)
			}
			return nil
		},
	}
}

// DialJoin opens a connection for a node that has no certificate yet, to the
// cluster whose CA has the given SHA-256 hash (Token.CAHash). The other side has
// to show a certificate issued by exactly that CA, so that a token's secret is
// never sent to anyone else. It is bounded by ctx, and by three seconds to
// connect and five to be admitted. The connection is a *tls.Conn. Errors wrap
// ErrUnreachable, ErrNotPontoon, ErrWrongCA or ErrRefused.
func DialJoin(ctx context.Context, addr string, caHash [32]byte) (net.Conn, error) {
	d := net.Dialer{Timeout: defaultDialTimeout}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("join through %s: %w (%w)", addr, ErrUnreachable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, defaultHandshakeTimeout)
	defer cancel()
	tc := tls.Client(raw, joinConfig(caHash))
	err = greetedHandshake(ctx, raw, tc, ALPNJoin)
	switch {
	case err == nil:
		return tc, nil
	case errors.Is(err, ErrWrongCA), errors.Is(err, ErrRefused), isExpired(err):
		err = fmt.Errorf("join through %s: %w", addr, err)
	case ctx.Err() != nil:
		err = fmt.Errorf("join through %s: %w (connected, but the daemon there does not answer: %w)", addr, ErrUnreachable, err)
	default:
		err = fmt.Errorf("join through %s: %w (%w)", addr, ErrNotPontoon, err)
	}
	_ = raw.Close()
	return nil, err
}

func joinConfig(caHash [32]byte) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPNJoin},
		InsecureSkipVerify: true, // replaced by VerifyConnection: only the CA's hash is known yet
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPinned(cs.PeerCertificates, caHash)
		},
	}
}

// verifyPinned checks that the chain holds the CA with the given hash and that
// the first certificate was issued by it to a node.
func verifyPinned(chain []*x509.Certificate, caHash [32]byte) error {
	for _, c := range chain {
		if sha256.Sum256(c.Raw) != caHash {
			continue
		}
		pool := x509.NewCertPool()
		pool.AddCert(c)
		_, err := verifyNode(chain, pool, x509.ExtKeyUsageServerAuth)
		switch {
		case err == nil:
			return nil
		case isExpired(err):
			return fmt.Errorf("the peer's certificate is not valid at this machine's time; check both clocks: %w", err)
		default:
			return fmt.Errorf("%w (%w)", ErrWrongCA, err)
		}
	}
	return ErrWrongCA
}

// isExpired also covers "not valid yet": x509 has one reason for both.
func isExpired(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}
