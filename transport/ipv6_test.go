package transport

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// loopbacks are the loopback addresses of this machine by family: a cluster's
// addresses may be of either.
func loopbacks(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{"IPv4": "127.0.0.1"}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Logf("this machine has no IPv6: %v", err)
		return out
	}
	_ = l.Close()
	out["IPv6"] = "::1"
	return out
}

// needIPv6 skips where there is no IPv6 loopback.
func needIPv6(t *testing.T) {
	t.Helper()
	if _, ok := loopbacks(t)["IPv6"]; !ok {
		t.Skip("this machine has no IPv6")
	}
}

func onIPv6(c *MuxConfig) { c.Address = "[::1]:0" }

func TestJoinerAndMembersMeetOverIPv6(t *testing.T) {
	needIPv6(t)
	checkLeaks(t)
	ca := newTestCA(t)
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNAPI), onIPv6)
	client := startMux(t, newTestIdentity(t, ca, "lb2"), nil, onIPv6)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := client.Dial(ctx, server.addr(), ALPNAPI, "lb1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if got := readLine(t, conn); got != "hello lb2" {
		t.Errorf("got %q", got)
	}
}

func TestCertificateNamesAnIPv6Address(t *testing.T) {
	ca := newTestCA(t)
	req, err := NewRequest("lb1")
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(req.CSR(), "lb1", []netip.Addr{netip.MustParseAddr("fd00:80::11")})
	if err != nil {
		t.Fatal(err)
	}
	id, err := req.Finish(der, ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if err := id.tlsCertificate().Leaf.VerifyHostname("fd00:80::11"); err != nil {
		t.Error(err)
	}
}

func TestHostAliveOverIPv6(t *testing.T) {
	needIPv6(t)
	checkLeaks(t)
	closed, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	if !HostAlive(t.Context(), closed.Addr().String()) {
		t.Error("a host that refuses is held for dead")
	}
}
