package host

import (
	"log/slog"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// newNetns moves the test onto a thread of its own in a fresh unnamed network
// namespace. The thread is never unlocked: when the test's goroutine ends the
// runtime throws the thread away, and the namespace with it, also on failure.
func newNetns(t *testing.T) netns.NsHandle {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// newHost opens a Host in the test's namespace.
func newHost(t *testing.T) *Host {
	t.Helper()
	h, err := New(slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(b[:len(b)-1]))
	return len(b), nil
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

// eventually polls ok until it holds, for at most five seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 5 s still not: %s", what)
		}
	}
}
