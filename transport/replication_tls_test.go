package transport

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// muxPair puts two replicators on two cluster ports, as the product does.
func muxPair(t *testing.T, tuneB func(*replTable)) (a, b *replNode) {
	return muxPairOf(t, func(c *ReplicationConfig, m *replTable) {
		if c.Node == "b" {
			tuneB(m)
		}
	})
}

func muxPairOf(t *testing.T, both func(*ReplicationConfig, *replTable)) (a, b *replNode) {
	n := newReplNet(t, false)
	ca := newTestCA(t)
	muxes := map[string]*testMux{}
	tune := func(name string) func(*ReplicationConfig, *replTable) {
		return func(c *ReplicationConfig, m *replTable) {
			c.QueueRecords = 1 << 20
			c.Dial = func(ctx context.Context, p ReplicationPeer) (net.Conn, error) {
				return muxes[name].Dial(ctx, p.Address, ALPNReplication, p.Node)
			}
			both(c, m)
		}
	}
	a, b = n.add("a", tune("a")), n.add("b", tune("b"))
	for _, node := range []*replNode{a, b} {
		muxes[node.name] = startMux(t, newTestIdentity(t, ca, node.name), func(m *Mux) { m.Handle(ALPNReplication, node.Serve) })
	}
	a.SetPeers([]ReplicationPeer{{"b", muxes["b"].addr()}})
	b.SetPeers([]ReplicationPeer{{"a", muxes["a"].addr()}})
	n.awaitEqual(a, b)
	n.awaitEqual(b, a)
	t.Cleanup(n.stop) // before the ports are closed
	return a, b
}

// The cluster's port gives a peer with a shut window five seconds; a sink that
// works longer must not be cut off.
func TestReplicationOverTLSWaitsForASlowSink(t *testing.T) {
	if testing.Short() {
		t.Skip("waits longer than the TCP user timeout of the cluster's port")
	}
	var gate sync.RWMutex
	a, b := muxPair(t, func(m *replTable) {
		m.gate = func(context.Context, string) error {
			gate.RLock()
			defer gate.RUnlock()
			return nil
		}
	})
	gate.Lock()
	for k := range uint64(200000) { // 25 MB: more than the socket buffers of both ends
		a.Publish(a.table.put(k, 1))
	}
	replSleep(t.Context(), userTimeout+2*time.Second)
	gate.Unlock()
	replEventually(t, "b holds what a owns", func() bool { return len(b.table.replica("a")) == 200000 })
	if s := a.status("b"); s.Resyncs != 0 || s.LastError != "" || s.State != ReplicationStreaming {
		t.Errorf("the stream did not last: %+v", s)
	}
}

func TestReplicationToleratesAShutWindowBelowTLS(t *testing.T) {
	near, far, err := replConnPair(false)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	var table connTable
	tracked, err := table.track(near)
	if err != nil {
		t.Fatal(err)
	}
	defer tracked.Close()
	if err := tuneConn(near); err != nil {
		t.Fatal(err)
	}
	if err := replTolerate(replWrapped{tracked}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	raw, err := near.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	if err := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); err != nil {
		t.Fatal(err)
	}
	if got != 30000 {
		t.Errorf("the TCP user timeout is %d ms", got)
	}
}

// replWrapped stands for a tls.Conn.
type replWrapped struct{ net.Conn }

func (w replWrapped) NetConn() net.Conn { return w.Conn }

// A bye tells why also through TLS, and its end is heard.
func TestReplicationOverTLSSaysGoodbye(t *testing.T) {
	a, b := muxPair(t, func(*replTable) {})
	a.SetPeers(nil)
	replEventually(t, "b hears the goodbye", func() bool {
		return strings.Contains(b.status("a").InboundError, "the node stops replicating")
	})
}

// wideDigests has as many buckets as there may be, each of them different.
type wideDigests struct{ *replTable }

func (wideDigests) Digest(context.Context) ([]uint64, error) {
	sums := make([]uint64, replMaxBuckets)
	for i := range sums {
		sums[i] = uint64(i + 1)
	}
	return sums, nil
}

func (wideDigests) DigestOf(context.Context, string) ([]uint64, error) {
	return make([]uint64, replMaxBuckets), nil
}

// The largest digest and the largest answer cross the cluster's port under load.
func TestReplicationOverTLSComparesTheMostBuckets(t *testing.T) {
	a, b := muxPairOf(t, func(c *ReplicationConfig, m *replTable) { c.Digests = wideDigests{m} })
	stop, load := make(chan struct{}), sync.WaitGroup{}
	a.churn(&load, 1000, stop)
	for range 3 {
		c, err := a.Compare(t.Context(), "b")
		if err != nil || c.Buckets != replMaxBuckets || len(c.Differ) != replMaxBuckets {
			t.Errorf("%d of %d buckets differ, %v", len(c.Differ), c.Buckets, err)
		}
	}
	close(stop)
	load.Wait()
	n := b.status("a")
	if s := a.status("b"); s.Resyncs != 0 || n.InboundError != "" {
		t.Errorf("status %+v and %+v", s, n)
	}
}
