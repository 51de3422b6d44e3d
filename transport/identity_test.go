package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// checkLeaks fails the test if goroutines outlive it. Call it first, so that it
// looks after all other clean-ups.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

// eventually polls cond until it holds or the deadline passes.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("after %s still waiting: %s", limit, what)
		}
	}
}

func newTestCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA("test-cluster")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newTestIdentity(t testing.TB, ca *CA, node string) *Identity {
	t.Helper()
	req, err := NewRequest(node)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(req.CSR(), node, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	id, err := req.Finish(cert, ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Fatalf("error is %v, want one that says %q", err, part)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Fatalf("error has more than one line: %q", err)
	}
}

func TestSignedCertificateHasTheNodesNameAddressesAndUses(t *testing.T) {
	ca := newTestCA(t)
	req, err := NewRequest("lb1")
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(req.CSR(), "lb1", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject.CommonName != "lb1" || len(c.DNSNames) != 1 || c.DNSNames[0] != "lb1" || len(c.IPAddresses) != 2 {
		t.Errorf("names are %q %q %v", c.Subject.CommonName, c.DNSNames, c.IPAddresses)
	}
	if c.IsCA || len(c.ExtKeyUsage) != 2 {
		t.Errorf("IsCA %v, uses %v", c.IsCA, c.ExtKeyUsage)
	}
	if back := time.Since(c.NotBefore); back < 55*time.Minute || back > 65*time.Minute {
		t.Errorf("valid from %s ago, want an hour", back)
	}
	if years := time.Until(c.NotAfter).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("valid for %.1f years, want 10", years)
	}
	root, err := x509.ParseCertificate(ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if !c.NotAfter.Before(root.NotAfter) {
		t.Error("the node's certificate outlives the CA's")
	}
}

func TestEveryAllowedNodeNameCanBeCertified(t *testing.T) {
	ca := newTestCA(t)
	for _, name := range []string{"a", "LB-1", "rack_2.node-3", "10.0.0.1", "x" + strings.Repeat("y", 61) + "z", "a..b", "a.-b"} {
		if id := newTestIdentity(t, ca, name); id.Node() != name {
			t.Errorf("identity of %q says %q", name, id.Node())
		}
	}
	for _, name := range []string{"", "-a", "a-", "a b", "a/b", "ä", strings.Repeat("x", 64), "a\n"} {
		if _, err := NewRequest(name); err == nil {
			t.Errorf("a request for the name %q was made", name)
		}
	}
}

func TestSignRefusesBadRequests(t *testing.T) {
	ca := newTestCA(t)
	csr := func(tmpl *x509.CertificateRequest, key any) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	named := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "lb1"}}
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	short, _ := rsa.GenerateKey(rand.Reader, 2048)
	broken := csr(named, p256)
	broken[len(broken)-5] ^= 1
	tests := []struct {
		name, node, want string
		csr              []byte
	}{
		{"broken signature", "lb1", "signature", broken},
		{"another name", "lb2", `names "lb1"`, csr(named, p256)},
		{"bad name", "lb 1", "not valid", csr(named, p256)},
		{"RSA key", "lb1", "not supported", csr(named, short)},
		{"other curve", "lb1", "not supported", csr(named, p384)},
		{"rubbish", "lb1", "parse request", []byte("rubbish")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ca.Sign(tt.csr, tt.node, nil)
			wantError(t, err, tt.want)
		})
	}
}

func TestKeyOfARequestIsThatOfItsCertificate(t *testing.T) {
	ca := newTestCA(t)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	seen := map[[32]byte]bool{}
	for _, key := range []any{p256, ed} {
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "lb1"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := RequestKey(csr)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second certificate for the same request is of the same machine
			der, err := ca.Sign(csr, "lb1", nil)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			if want := sha256.Sum256(cert.RawSubjectPublicKeyInfo); got != want {
				t.Errorf("%T: the request's key is %x, the certificate's %x", key, got, want)
			}
		}
		if seen[got] {
			t.Error("two keys have one hash")
		}
		seen[got] = true
	}
	if a, b := newTestIdentity(t, ca, "lb1"), newTestIdentity(t, ca, "lb1"); a.Key() == b.Key() {
		t.Error("two joins under one name have one key")
	}
	_, err := RequestKey([]byte("rubbish"))
	wantError(t, err, "parse request")
}

func TestSignIgnoresWhatTheRequestAsksForBesides(t *testing.T) {
	ca := newTestCA(t)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "lb1", Organization: []string{"admins"}},
		DNSNames: []string{"lb2"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(csr, "lb1", nil)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := x509.ParseCertificate(der)
	if len(c.DNSNames) != 1 || c.DNSNames[0] != "lb1" || len(c.Subject.Organization) != 0 {
		t.Errorf("the certificate has %q %q", c.DNSNames, c.Subject)
	}
}

func TestFinishRefusesForeignCertificates(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	req, _ := NewRequest("lb1")
	req2, _ := NewRequest("lb1")
	good, err := ca.Sign(req.CSR(), "lb1", nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := other.Sign(req.CSR(), "lb1", nil)
	otherKey, _ := ca.Sign(req2.CSR(), "lb1", nil)
	tests := []struct {
		name, want string
		cert, ca   []byte
	}{
		{"another CA signed", "unknown authority", foreign, ca.Certificate()},
		{"another CA is named", "unknown authority", good, other.Certificate()},
		{"another key", "another key", otherKey, ca.Certificate()},
		{"no CA certificate", "not a CA", good, good},
		{"rubbish", "parse", []byte("x"), ca.Certificate()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := req.Finish(tt.cert, tt.ca)
			wantError(t, err, tt.want)
		})
	}
	renamed := &Request{node: "lb2", key: req.key}
	_, err = renamed.Finish(good, ca.Certificate())
	wantError(t, err, `names "lb1"`)
}

func TestIdentityAndCASurviveSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	ca := newTestCA(t)
	id := newTestIdentity(t, ca, "lb1")
	if _, err := LoadIdentity(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error without an identity is %v", err)
	}
	if _, err := LoadCA(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error without a CA is %v", err)
	}
	for range 2 { // saving again replaces
		if err := ca.Save(dir); err != nil {
			t.Fatal(err)
		}
		if err := id.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	wantModes(t, dir, map[string]os.FileMode{"ca.key": 0o600, "node.key": 0o600, "ca.crt": 0o644, "node.crt": 0o644})
	id2, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id2.Node() != "lb1" || !bytes.Equal(id2.CA(), ca.Certificate()) || !bytes.Equal(id2.Certificate(), id.Certificate()) {
		t.Error("the loaded identity differs")
	}
	ca2, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	req, _ := NewRequest("lb2")
	der, err := ca2.Sign(req.CSR(), "lb2", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := req.Finish(der, ca.Certificate()); err != nil {
		t.Errorf("what the loaded CA signs is not accepted: %v", err)
	}
}

func TestRemovedKeysAreGone(t *testing.T) {
	dir := t.TempDir()
	ca := newTestCA(t)
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := newTestIdentity(t, ca, "lb1").Save(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveCAKey(dir); err != nil {
			t.Fatal(err)
		}
	}
	wantModes(t, dir, map[string]os.FileMode{"node.key": 0o600, "ca.crt": 0o644, "node.crt": 0o644})
	for range 2 {
		if err := RemoveIdentity(dir); err != nil {
			t.Fatal(err)
		}
	}
	wantModes(t, dir, nil)
}

func TestLoadRefusesReadableAndMismatchedKeys(t *testing.T) {
	dir := t.TempDir()
	ca, other := newTestCA(t), newTestCA(t)
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "ca.key"), 0o640); err != nil {
		t.Fatal(err)
	}
	_, err := LoadCA(dir)
	wantError(t, err, "make it 0600")

	keyDER, err := other.MarshalKey()
	if err != nil {
		t.Fatal(err)
	}
	_, err = ParseCA(ca.Certificate(), keyDER)
	wantError(t, err, "does not belong")
	if _, err := ParseCA(other.Certificate(), keyDER); err != nil {
		t.Errorf("a matching pair is refused: %v", err)
	}

	if err := newTestIdentity(t, ca, "lb1").Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := other.Save(dir); err != nil { // overwrites ca.crt
		t.Fatal(err)
	}
	_, err = LoadIdentity(dir)
	wantError(t, err, "unknown authority")
	if err := os.WriteFile(filepath.Join(dir, "node.crt"), []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = LoadIdentity(dir)
	wantError(t, err, "no PEM block")
}

// wantModes checks that dir holds exactly these files with these modes.
func wantModes(t *testing.T, dir string, want map[string]os.FileMode) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if mode, ok := want[e.Name()]; !ok || info.Mode().Perm() != mode {
			t.Errorf("%s is there with mode %04o", e.Name(), info.Mode().Perm())
		}
	}
	if len(entries) != len(want) {
		t.Errorf("%d files, want %d", len(entries), len(want))
	}
}
