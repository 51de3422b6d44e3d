package transport

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"regexp"
	"time"
)

const (
	// caLife is longer than any node certificate, so that no node certificate
	// outlives what it is checked against.
	caLife = 30 * 365 * 24 * time.Hour
	// nodeLife is the validity of a node certificate. Membership, not expiry, is
	// what takes a node's access away (MuxConfig.Authorize).
	nodeLife = 10 * 365 * 24 * time.Hour
	// clockSkew is how far a certificate's start lies in the past: a new node
	// whose clock is behind must be able to use what it was just given.
	clockSkew = time.Hour
)

// nodeNamePattern is the set of names a node may have.
var nodeNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// CA is the cluster's certificate authority: an ECDSA P-256 key and its
// self-signed certificate. Its key lives on voters only. A CA is immutable and
// safe for concurrent use. It never prints its key: it has no String method and
// its fields are private.
type CA struct {
	key  crypto.Signer
	cert *x509.Certificate
}

// NewCA makes a new authority for the cluster with the given id. The id stands
// in the certificate for people to read; trust rests on the key alone.
func NewCA(clusterID string) (*CA, error) {
	if clusterID == "" {
		return nil, errors.New("make CA: the cluster id is empty")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Pontoon CA " + clusterID},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return newCA(der, key)
}

// ParseCA puts a CA together from its certificate and its PKCS #8 key (both
// DER), as MarshalKey and Certificate give them. It fails when the certificate
// is no CA certificate or the key is not its key.
func ParseCA(certDER, keyDER []byte) (*CA, error) {
	key, err := parseKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("parse CA: %w", err)
	}
	return newCA(certDER, key)
}

func newCA(certDER []byte, key crypto.Signer) (*CA, error) {
	cert, err := parseCACertificate(certDER)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(cert.PublicKey, key.Public()) {
		return nil, errors.New("parse CA: the key does not belong to the certificate")
	}
	return &CA{key: key, cert: cert}, nil
}

// LoadCA reads ca.key and ca.crt in dir. The error wraps os.ErrNotExist when
// this node holds no CA key, as is normal on a node that is not a voter.
func LoadCA(dir string) (*CA, error) {
	keyDER, err := readPEM(dir, caKeyFile, pemKey, true)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	certDER, err := readPEM(dir, caCertFile, pemCert, false)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	ca, err := ParseCA(certDER, keyDER)
	if err != nil {
		return nil, fmt.Errorf("load CA from %s: %w", dir, err)
	}
	return ca, nil
}

// Save writes ca.crt (0644) and then ca.key (0600) into dir, each atomically.
func (c *CA) Save(dir string) error {
	keyDER, err := c.MarshalKey()
	if err != nil {
		return err
	}
	if err := writePEM(dir, caCertFile, pemCert, c.cert.Raw, modePublic); err != nil {
		return fmt.Errorf("save CA: %w", err)
	}
	if err := writePEM(dir, caKeyFile, pemKey, keyDER, modeSecret); err != nil {
		return fmt.Errorf("save CA: %w", err)
	}
	return nil
}

// RemoveCAKey deletes ca.key from dir, on a node that ceased to be a voter. It
// is not an error when there is none. The public ca.crt stays.
func RemoveCAKey(dir string) error { return removeFile(dir, caKeyFile) }

// Certificate returns the CA's certificate (DER). The caller owns the slice.
func (c *CA) Certificate() []byte { return bytes.Clone(c.cert.Raw) }

// MarshalKey returns the CA's private key as PKCS #8 DER, for the hand-over to a
// new voter over ALPNCA. It must go nowhere else.
func (c *CA) MarshalKey() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("encode CA key: %w", err)
	}
	return der, nil
}

// Sign turns a certificate request into a node certificate (DER) that is valid
// for ten years, for both client and server use, with the node's name as common
// name and DNS name and the given addresses. Only the public key and the name
// are taken from the request, and the name must be the given one: what else a
// request asks for is ignored. Whether the node may have that name is for the
// caller to decide.
func (c *CA) Sign(csrDER []byte, node string, ips []netip.Addr) ([]byte, error) {
	if err := checkNodeName(node); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	csr, err := parseRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", node, err)
	}
	if csr.Subject.CommonName != node {
		return nil, fmt.Errorf("sign certificate of %s: the request names %q", node, csr.Subject.CommonName)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", node, err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: node},
		DNSNames:     []string{node},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(nodeLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, ip := range ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, csr.PublicKey, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", node, err)
	}
	return der, nil
}

func parseCACertificate(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("parse CA certificate: it is not a CA's certificate")
	}
	if err := checkPublicKey(cert.PublicKey); err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, fmt.Errorf("parse CA certificate: it is not signed by itself: %w", err)
	}
	return cert, nil
}

// checkPublicKey allows the kinds of key whose strength is known: a node must
// not be able to enter the cluster with a short RSA key.
func checkPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
		return fmt.Errorf("key on curve %s is not supported, only P-256", k.Curve.Params().Name)
	default:
		return fmt.Errorf("key of type %T is not supported, only ECDSA P-256 and Ed25519", pub)
	}
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// checkNodeName refuses what could not be told apart, or read, in a certificate.
func checkNodeName(node string) error {
	if !nodeNamePattern.MatchString(node) {
		return fmt.Errorf("node name %q is not valid: use 1 to 63 letters, digits, '.', '_' and '-', with a letter or digit at both ends", node)
	}
	return nil
}

// newSerial returns a random positive serial number of 126 bits or fewer
// (RFC 5280, 4.1.2.2 allows 20 octets).
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	b[0] = b[0]&0x3f | 0x20 // positive, and never shorter than 16 octets
	return new(big.Int).SetBytes(b[:]), nil
}
