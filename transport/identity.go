package transport

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
)

// Request is a node's wish for a certificate: a fresh private key, which never
// leaves the node, and the request to sign.
type Request struct {
	node string
	key  crypto.Signer
	csr  []byte
}

// NewRequest makes a fresh ECDSA P-256 key and a certificate request for node.
func NewRequest(node string) (*Request, error) {
	if err := checkNodeName(node); err != nil {
		return nil, fmt.Errorf("request certificate: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("request certificate: make key: %w", err)
	}
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}
	csr, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		return nil, fmt.Errorf("request certificate: %w", err)
	}
	return &Request{node: node, key: key, csr: csr}, nil
}

// CSR returns the request to sign (PKCS #10, DER). It holds no secret.
func (r *Request) CSR() []byte { return bytes.Clone(r.csr) }

// RequestKey checks a certificate request (PKCS #10, DER) and returns the
// SHA-256 of the SubjectPublicKeyInfo of a certificate signed for it: what
// Identity.Key and Authorize will say of the node. The request's own encoding of
// the key is not used, since CA.Sign encodes it anew.
func RequestKey(csrDER []byte) (key [32]byte, err error) {
	csr, err := parseRequest(csrDER)
	if err != nil {
		return key, fmt.Errorf("read key of certificate request: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return key, fmt.Errorf("read key of certificate request: %w", err)
	}
	return sha256.Sum256(spki), nil
}

// parseRequest reads a request that proves to hold its key, of a kind that is
// allowed.
func parseRequest(csrDER []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("parse request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check request's signature: %w", err)
	}
	return csr, checkPublicKey(csr.PublicKey)
}

// Finish makes an Identity of the signed certificate. It fails unless the
// certificate was issued by the given CA, for this request's key and name.
func (r *Request) Finish(certDER, caDER []byte) (*Identity, error) {
	id, err := newIdentity(r.key, certDER, caDER)
	if err != nil {
		return nil, fmt.Errorf("finish certificate request of %s: %w", r.node, err)
	}
	if id.node != r.node {
		return nil, fmt.Errorf("finish certificate request of %s: the certificate names %q", r.node, id.node)
	}
	return id, nil
}

// Identity is one node's key pair and certificate together with the CA's
// certificate. It is immutable and safe for concurrent use.
type Identity struct {
	node string
	key  crypto.Signer
	cert *x509.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool
}

func newIdentity(key crypto.Signer, certDER, caDER []byte) (*Identity, error) {
	ca, err := parseCACertificate(caDER)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("parse node certificate: %w", err)
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, errors.New("the certificate is for another key")
	}
	id := &Identity{key: key, cert: cert, ca: ca, pool: x509.NewCertPool()}
	id.pool.AddCert(ca)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if id.node, err = verifyNode([]*x509.Certificate{cert}, id.pool, usage); err != nil {
			return nil, err
		}
	}
	return id, nil
}

// LoadIdentity reads node.key, node.crt and ca.crt in dir and checks that they
// belong together. The error wraps os.ErrNotExist when the node has none yet.
func LoadIdentity(dir string) (*Identity, error) {
	keyDER, err := readPEM(dir, nodeKeyFile, pemKey, true)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	certDER, err := readPEM(dir, nodeCertFile, pemCert, false)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	caDER, err := readPEM(dir, caCertFile, pemCert, false)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	key, err := parseKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	id, err := newIdentity(key, certDER, caDER)
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	return id, nil
}

// Save writes ca.crt and node.crt (0644) and then node.key (0600) into dir. Each
// file is replaced atomically; the key comes last, so that a save cut short
// leaves no key, which LoadIdentity reports as no identity.
func (id *Identity) Save(dir string) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return fmt.Errorf("save identity: encode key: %w", err)
	}
	if err := removeFile(dir, nodeKeyFile); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := writePEM(dir, caCertFile, pemCert, id.ca.Raw, modePublic); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := writePEM(dir, nodeCertFile, pemCert, id.cert.Raw, modePublic); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := writePEM(dir, nodeKeyFile, pemKey, keyDER, modeSecret); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}

// RemoveIdentity deletes node.key, node.crt and ca.crt from dir, for a node that
// left its cluster. Files that are not there are fine.
func RemoveIdentity(dir string) error {
	return errors.Join(removeFile(dir, nodeKeyFile), removeFile(dir, nodeCertFile), removeFile(dir, caCertFile))
}

// Node returns the name this identity was issued for.
func (id *Identity) Node() string { return id.node }

// Key returns the SHA-256 of the SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) of the
// node's certificate. It is new with every join, and no secret.
func (id *Identity) Key() [32]byte { return certificateKey(id.cert) }

func certificateKey(cert *x509.Certificate) [32]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// CA returns the CA's certificate (DER). The caller owns the slice.
func (id *Identity) CA() []byte { return bytes.Clone(id.ca.Raw) }

// Certificate returns the node's certificate (DER). The caller owns the slice.
func (id *Identity) Certificate() []byte { return bytes.Clone(id.cert.Raw) }

// tlsCertificate is what this node presents. The CA's certificate goes along, so
// that a joiner, who knows only its hash, can check the chain.
func (id *Identity) tlsCertificate() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{id.cert.Raw, id.ca.Raw},
		PrivateKey:  id.key,
		Leaf:        id.cert,
	}
}

// verifyNode checks that the first of the presented certificates was issued by
// the pool's CA for the given use, and returns the node's name.
func verifyNode(presented []*x509.Certificate, pool *x509.CertPool, usage x509.ExtKeyUsage) (string, error) {
	if len(presented) == 0 {
		return "", errNoCertificate
	}
	leaf := presented[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return "", fmt.Errorf("verify certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	return certificateName(leaf)
}

// certificateName returns the node name of a verified certificate: the common
// name, confirmed by the DNS name, as Sign writes both. Names are compared
// exactly, which host name checks (case-insensitive) would not do.
func certificateName(leaf *x509.Certificate) (string, error) {
	name := leaf.Subject.CommonName
	if err := checkNodeName(name); err != nil {
		return "", fmt.Errorf("read name of certificate: %w", err)
	}
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != name || leaf.IsCA {
		return "", fmt.Errorf("certificate of %q is not a node's certificate", name)
	}
	return name, nil
}
