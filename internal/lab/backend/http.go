package backend

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"time"
)

// discardLog takes what net/http says of clients that went away.
func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// answerHTTP answers 200 to what the server is configured for, 404 to the rest,
// and 500 when it fails.
func (s *Server) answerHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.dawdle(r.Context()); err != nil {
		return
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	w.Header().Set("Content-Type", "text/plain")
	switch {
	case s.fails():
		http.Error(w, s.cfg.Name+" fails", http.StatusInternalServerError)
	case s.cfg.Host != "" && host != s.cfg.Host, s.cfg.Path != "" && r.URL.Path != s.cfg.Path:
		http.NotFound(w, r)
	default:
		s.requests.Add(1)
		_, _ = io.WriteString(w, s.cfg.Body) // who went away needs no answer
	}
}

// tlsConfig serves the server's certificate to who asks for its host, or for
// nobody in particular when it has none.
func (s *Server) tlsConfig() *tls.Config {
	cfg := &tls.Config{Certificates: []tls.Certificate{*s.cert}, MinVersion: tls.VersionTLS12}
	if s.cfg.Host != "" {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName != s.cfg.Host {
				return nil, fmt.Errorf("no certificate for %q", hello.ServerName)
			}
			return nil, nil // the one there is
		}
	}
	return cfg
}

// selfSigned makes a certificate that nobody but its owner vouches for.
func selfSigned(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
