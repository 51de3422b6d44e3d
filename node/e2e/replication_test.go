package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/bpf/bpftest"
	"pontoon/internal/lab"
	"pontoon/internal/lab/traffic"
)

// The size of the big test: what stands here is for everyday; make
// test-replication sets the size the product is meant for.
var (
	manyFlows = fromEnv("PONTOON_TEST_FLOWS", 5000)       // put into the master's data plane by packets
	manyConns = fromEnv("PONTOON_TEST_CONNECTIONS", 100)  // real ones with checked payload
	manyCuts  = fromEnv("PONTOON_TEST_CUTS", 8)           // of a peer's stream
	floodSize = fromEnv("PONTOON_TEST_RING_FLOWS", 80000) // more records than the ring of 8 MiB holds
)

func fromEnv(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return def
}

const (
	bulkPort         = 81
	bulkEndpointPort = 8081
)

// flowMaker opens connections in a node's data plane by packets: each handshake
// goes through the programs as those of real clients do.
type flowMaker struct {
	endpoint netip.AddrPort
	made     atomic.Int64
}

// client is the made-up client of connection i. It is in the clients' subnet, so
// that there is a route to it.
func (f *flowMaker) client(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 80, byte(110 + i/60000)}), uint16(1024+i%60000))
}

// open makes count more connections on n. Those that the data plane refuses are
// an error.
func (f *flowMaker) open(ctx context.Context, n *lab.Node, count int) error {
	return f.walk(n, func(yield func(int) bool) {
		for range count {
			if ctx.Err() != nil || !yield(int(f.made.Add(1))-1) {
				return
			}
		}
	}, step{false, tcpSYN}, step{true, tcpSYN | tcpACK}, step{false, tcpACK})
}

// forget has n lose the connections first to last-1.
func (f *flowMaker) forget(t testing.TB, n *lab.Node, first, last int) {
	t.Helper()
	clients := map[netip.AddrPort]bool{}
	for i := range between(first, last) {
		clients[f.client(i)] = true
	}
	halves, err := bpftest.Forget(n.PinDir(), func(a netip.AddrPort) bool { return clients[a] })
	if err != nil || halves != 2*(last-first) {
		t.Fatalf("%s forgot %d halves of %d connections: %v", n.Name(), halves, last-first, err)
	}
}

const tcDrop = 2 // TC_ACT_SHOT

// keepOpening opens connections at a rate a second until stop is called.
func (f *flowMaker) keepOpening(t testing.TB, n *lab.Node, rate int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-tick.C:
			}
			if err := f.open(ctx, n, rate/50); err != nil {
				done <- err
				return
			}
		}
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// waitEqualTables waits until all nodes' flow tables hold the same established
// connections, and each connection has one owner that all of them agree on.
func waitEqualTables(t testing.TB, atLeast int, nodes ...*lab.Node) {
	t.Helper()
	began := time.Now()
	eventually(t, 60*time.Second, "the flow tables to be equal", func(context.Context) error {
		var first map[bpftest.Half]uint8
		for _, n := range nodes {
			all, err := bpftest.Established(n.PinDir())
			if err != nil {
				return err
			}
			if len(all) < 2*atLeast {
				return fmt.Errorf("%s holds %d connections of %d", n.Name(), len(all)/2, atLeast)
			}
			if first == nil {
				first = all
				continue
			}
			missing, other := compareTables(first, all)
			if missing > 0 || other > 0 {
				return fmt.Errorf("%s and %s (%d and %d halves): %d are on one side only, %d have two owners",
					nodes[0].Name(), n.Name(), len(first), len(all), missing, other)
			}
		}
		return nil
	})
	t.Logf("equal tables of %d nodes after %s", len(nodes), time.Since(began).Round(time.Millisecond))
}

func compareTables(a, b map[bpftest.Half]uint8) (missing, otherOwner int) {
	for half, owner := range a {
		switch other, ok := b[half]; {
		case !ok:
			missing++
		case other != owner:
			otherOwner++
		}
	}
	for half := range b {
		if _, ok := a[half]; !ok {
			missing++
		}
	}
	return missing, otherOwner
}

// declareBulk makes the service that made-up clients connect to.
func declareBulk(t testing.TB, l *lab.Lab) *flowMaker {
	t.Helper()
	f := &flowMaker{endpoint: netip.AddrPortFrom(l.Endpoints()[0].Addr(), bulkEndpointPort)}
	cli(t, l.Nodes()[0], "service", "create", "bulk", "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(bulkPort),
		"--mode", "dnat", "--new-flow-rate", "4000000000", "--endpoint", f.endpoint.String())
	return f
}

// cutStreams destroys one of the TCP connections of n's cluster port at random,
// as a firewall between the nodes might.
func cutStreams(t testing.TB, n *lab.Node) {
	t.Helper()
	err := n.Do(func() error {
		sockets, err := netlink.SocketDiagTCP(unix.AF_INET)
		if err != nil {
			return err
		}
		port := n.ClusterAddress().Port()
		sockets = slices.DeleteFunc(sockets, func(s *netlink.Socket) bool {
			return s.State != netlink.TCP_ESTABLISHED || s.ID.SourcePort != port && s.ID.DestinationPort != port
		})
		if len(sockets) == 0 {
			return nil // cut a moment ago
		}
		id := sockets[rand.IntN(len(sockets))].ID
		return netlink.SocketDestroy(&net.TCPAddr{IP: id.Source, Port: int(id.SourcePort)}, &net.TCPAddr{IP: id.Destination, Port: int(id.DestinationPort)})
	})
	if err != nil {
		t.Log("nothing was cut:", err)
	}
}

// unharmed checks that every connection of the window is there and goes on.
func unharmed(t testing.TB, w *traffic.Window) {
	t.Helper()
	w.Mark()
	if err := w.Wait(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
	if r := w.Result(); r.Survived != r.Connections {
		t.Errorf("%d of %d connections survived: %v", r.Survived, r.Connections, r.Errors)
	}
}

// waitSameDigests waits until every peer of n holds n's flows by the nodes' own
// comparison, which says more than the tables' keys: also in what state each is.
func waitSameDigests(t testing.TB, n *lab.Node) {
	t.Helper()
	eventually(t, 60*time.Second, "the digests of "+n.Name()+" and its peers to be equal", func(ctx context.Context) error {
		var all []struct {
			Peer    string `json:"peer"`
			Equal   bool   `json:"equal"`
			Buckets int    `json:"buckets"`
			Differ  int    `json:"differ"`
			Error   string `json:"error"`
		}
		if err := get(ctx, n, "/v1/replication/digest", &all); err != nil {
			return err
		}
		for _, c := range all {
			if !c.Equal || c.Buckets == 0 {
				return fmt.Errorf("%+v", c)
			}
		}
		return nil
	})
}

// replicated is the part of GET /v1/replication that tests look at.
type replicated struct {
	Peers []struct {
		Peer         string            `json:"peer"`
		State        string            `json:"state"`
		Sent         uint64            `json:"sent"`
		LagP50MS     float64           `json:"lag_p50_ms"`
		LagP99MS     float64           `json:"lag_p99_ms"`
		Resyncs      uint64            `json:"resyncs"`
		ResyncCauses map[string]uint64 `json:"resync_causes"`
		Version      uint16            `json:"record_version"`
		LastSnapshot struct {
			MS      float64 `json:"ms"`
			Records uint64  `json:"records"`
		} `json:"last_snapshot"`
	} `json:"peers"`
	Orphans      int `json:"orphans"`
	LastTakeover *struct {
		Adopted int `json:"adopted"`
	} `json:"last_takeover"`
}

func replicatedBy(t testing.TB, n *lab.Node) (r replicated) {
	t.Helper()
	if err := get(within(t, 10*time.Second), n, "/v1/replication", &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// tellFigures logs how the streams of n have fared.
func tellFigures(t testing.TB, n *lab.Node) {
	t.Helper()
	for _, p := range replicatedBy(t, n).Peers {
		t.Logf("%s to %s: %s, %d records, lag p50 %.1f ms, p99 %.1f ms, resyncs %v", n.Name(), p.Peer, p.State, p.Sent, p.LagP50MS, p.LagP99MS, p.ResyncCauses)
	}
}

// bigTest is a cluster with flows of both kinds.
type bigTest struct {
	*lab.Lab
	flows   *flowMaker
	clients *traffic.Clients
}

func (b *bigTest) running() (nodes []*lab.Node) {
	for _, n := range b.Nodes() {
		if p := n.Process(); n.Powered() && p != nil && p.Running() {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// step runs one trouble and demands that afterwards no connection is lost and
// the tables of the members are equal.
func (b *bigTest) step(t *testing.T, name string, members []*lab.Node, trouble func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		w := b.clients.Window()
		trouble(t)
		unharmed(t, w)
		waitEqualTables(t, int(b.flows.made.Load()), members...)
		for _, n := range members {
			waitSameDigests(t, n)
			tellFigures(t, n)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

func newBigTest(t *testing.T) *bigTest {
	t.Helper()
	l := newLab(t, lab.Config{
		Topology: lab.TwoLeg, Nodes: 3, Clients: 1, Endpoints: 2,
		NodeArgs: append(longGrace(), "--max-flows", fmt.Sprint(2*(manyFlows+floodSize))),
	})
	nodes := l.Nodes()
	cli(t, nodes[0], "init")
	join(t, nodes[1], nodes[0])
	serve(t, l)
	cli(t, nodes[0], "vip", "create", lab.ServiceVIP().String())
	cli(t, nodes[0], "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	args := []string{"service", "create", "web", "--vip", lab.ServiceVIP().String(), "--port", "80", "--mode", "fullnat"}
	for _, ep := range l.Endpoints() {
		args = append(args, "--endpoint", netip.AddrPortFrom(ep.Addr(), webPort).String())
	}
	cli(t, nodes[0], args...)
	b := &bigTest{Lab: l, flows: declareBulk(t, l)}
	eventually(t, 30*time.Second, "two members in sync", func(ctx context.Context) error {
		s, err := nodes[0].Status(ctx)
		if err != nil {
			return err
		}
		return s.CheckHealthy(nodes[0].Name(), nodes[1].Name())
	})
	b.clients = connect(t, l, manyConns)
	return b
}

// Whatever happens to the streams and to the daemons, the tables become equal
// again and nobody's connection is lost.
func TestReplicasStayEqualThroughEveryTrouble(t *testing.T) {
	t.Parallel()
	b := newBigTest(t)
	nodes := b.Nodes()
	m := b.Node(status(t, nodes[0]).Master("default"))
	began := time.Now()
	if err := b.flows.open(t.Context(), m, manyFlows); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d flows made in %s", manyFlows, time.Since(began))
	steady(t, b.clients)
	waitEqualTables(t, manyFlows+manyConns, nodes[0], nodes[1])

	b.step(t, "join during load", nodes, func(t *testing.T) {
		stop := b.flows.keepOpening(t, m, 1000)
		defer stop()
		join(t, nodes[2], nodes[0])
		waitHealthy(t, b.Lab)
	})
	backup := b.backup(m)
	b.step(t, "streams cut", nodes, func(t *testing.T) {
		stop := b.flows.keepOpening(t, m, 1000)
		defer stop()
		for range manyCuts {
			cutStreams(t, []*lab.Node{m, backup}[rand.IntN(2)])
			pass(t, time.Duration(50+rand.IntN(400))*time.Millisecond)
		}
		// Not every connection that was cut carried flows, but some did.
		cut := uint64(0)
		for _, n := range nodes {
			for _, p := range replicatedBy(t, n).Peers {
				cut += p.ResyncCauses["reconnect"]
			}
		}
		if cut == 0 {
			t.Errorf("no stream was cut by %d cuts", manyCuts)
		}
	})
	b.step(t, "ring overrun", nodes, func(t *testing.T) {
		if err := m.Pause(); err != nil {
			t.Fatal(err)
		}
		err := b.flows.open(t.Context(), m, floodSize)
		if rerr := m.Resume(); err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
		waitEvent(t, m, "replication", "flow events were lost")
	})
	b.step(t, "slow peer", nodes, func(t *testing.T) {
		stop := b.flows.keepOpening(t, m, 1000)
		defer stop()
		for range 8 {
			if err := backup.Pause(); err != nil {
				t.Fatal(err)
			}
			pass(t, 250*time.Millisecond)
			if err := backup.Resume(); err != nil {
				t.Fatal(err)
			}
			pass(t, 100*time.Millisecond)
		}
	})
	for _, n := range []*lab.Node{backup, m} {
		b.step(t, "daemon of "+n.Name()+" killed", nodes, func(t *testing.T) { b.killAndStart(t, n, m) })
	}
	b.masterDies(t, m)
}

// backup is another node than the master.
func (b *bigTest) backup(m *lab.Node) *lab.Node {
	for _, n := range b.Nodes() {
		if n != m {
			return n
		}
	}
	return nil
}

func (b *bigTest) killAndStart(t *testing.T, n, m *lab.Node) {
	t.Helper()
	stop := b.flows.keepOpening(t, m, 1000)
	defer stop()
	if err := n.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	pass(t, time.Second)
	if err := n.Start(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitEvent(t, n, "data_plane", "adopted")
	waitHealthy(t, b.Lab)
}

// masterDies takes the master away right after a burst of new connections. What
// is lost of the burst is what the peers had not been told yet. Each survivor also
// lacks some older connections that the other knows, as if the master's last words
// had reached the other only.
func (b *bigTest) masterDies(t *testing.T, m *lab.Node) {
	t.Helper()
	const burst = 2000
	before := int(b.flows.made.Load())
	w := b.clients.Window()
	tellFigures(t, m)
	if err := b.flows.open(t.Context(), m, burst); err != nil {
		t.Fatal(err)
	}
	const apart = 300
	heirs := slices.DeleteFunc(b.running(), func(n *lab.Node) bool { return n == m })
	for i, n := range heirs {
		b.flows.forget(t, n, i*apart, (i+1)*apart)
	}
	if err := m.PowerOff(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next := master(t, b.Lab, m.Name())
	unharmed(t, w)
	survivors := b.running()
	waitEqualTables(t, before, survivors...)
	all, err := bpftest.Established(next.PinDir())
	if err != nil {
		t.Fatal(err)
	}
	kept := len(all)/2 - before - manyConns
	t.Logf("of %d connections made in the moment before the master's death %d are known to %s, %d are lost", burst, kept, next.Name(), burst-kept)
	for _, n := range survivors {
		learned := replicatedBy(t, n).Orphans
		t.Logf("%s learned of %d from the other survivors", n.Name(), learned)
		if learned < apart {
			t.Errorf("%s had lost %d", n.Name(), apart)
		}
	}
	var r replicated
	eventually(t, 10*time.Second, "the adopted connections to be counted", func(ctx context.Context) error {
		err := get(ctx, next, "/v1/replication", &r)
		if err == nil && (r.LastTakeover == nil || r.LastTakeover.Adopted < manyConns) {
			err = fmt.Errorf("%+v", r.LastTakeover)
		}
		return err
	})
}
