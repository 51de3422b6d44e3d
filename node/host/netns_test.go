package host

import (
	"log/slog"
	"testing"

	"github.com/vishvananda/netlink"
)

// newHost opens a Host in the test's namespace.
func newHost(t *testing.T) *Host {
	t.Helper()
	h, err := New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// addVeth makes a veth pair, both ends up.
func addVeth(t *testing.T, name, peer string) netlink.Link {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: peer}))
	for _, n := range []string{peer, name} {
		setUp(t, n, true)
	}
	return link(t, name)
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func setUp(t *testing.T, name string, up bool) {
	t.Helper()
	if up {
		must(t, netlink.LinkSetUp(link(t, name)))
		return
	}
	must(t, netlink.LinkSetDown(link(t, name)))
}

// operatorAdds sets an address as a person would.
func operatorAdds(t *testing.T, name, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	must(t, netlink.AddrAdd(link(t, name), a))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
