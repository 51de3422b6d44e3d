package bpf

import (
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// halfKeys are all keys in the half-open table.
func (b *bench) halfKeys() []pontoonFlowKey {
	b.tb.Helper()
	var keys []pontoonFlowKey
	for part, err := range b.half.dump(b.tb.Context()) {
		if err != nil {
			b.tb.Fatal(err)
		}
		keys = append(keys, part.keys...)
	}
	return keys
}

// neighbours are n clients whose forward halves share a bucket, which is otherwise empty.
func (b *bench) neighbours(n int) []netip.AddrPort {
	b.tb.Helper()
	buckets := uint64(b.maps.HalfOpen.MaxEntries())
	at := func(c netip.AddrPort) uint64 {
		key := keyOf(c, vipPort)
		return halfHash(&key, b.half.seed) & 0xffffffff * buckets >> 32
	}
	first := netip.AddrPortFrom(client, 1024)
	found := []netip.AddrPort{first}
	for port := uint16(1025); len(found) < n; port++ {
		if port == 0 {
			b.tb.Fatalf("%d clients share a bucket", len(found))
		}
		if c := netip.AddrPortFrom(client, port); at(c) == at(first) {
			found = append(found, c)
		}
	}
	return found
}

func (b *bench) isHalfOpen(c netip.AddrPort) bool {
	b.tb.Helper()
	var half pontoonFlow
	found, err := b.half.find(keyOf(c, vipPort), &half)
	if err != nil {
		b.tb.Fatal(err)
	}
	return found
}

// A ninth entry takes the place of the oldest that its endpoint has not answered.
func TestFullBucketGivesUpTheOldestNobodyAnswered(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	clients := b.neighbours(halfWays + 2)
	syn := func(c netip.AddrPort) (snat netip.AddrPort) {
		t.Helper()
		action, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		if action != actRedirect {
			t.Fatalf("SYN of %s: action %d, drops %v", c, action, b.Stats().Drops)
		}
		snat, _ = tuple(out)
		return snat
	}
	snat := syn(clients[0])
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	for _, c := range clients[1:halfWays] {
		syn(c)
	}
	if n := b.Stats().Counters["half_open_evicted"]; n != 0 {
		t.Fatalf("%d gave way while there was room", n)
	}
	syn(clients[halfWays])
	syn(clients[halfWays+1])
	for i, c := range clients {
		if gone := i == 1 || i == 2; b.isHalfOpen(c) == gone {
			t.Errorf("client %d is there: %t", i, !gone)
		}
	}
	if n := b.Stats().Counters["half_open_evicted"]; n != 2 {
		t.Errorf("%d gave way, want 2", n)
	}
	if action, _ := b.fromClient(bpftest.Packet{Src: clients[0], Dst: vipPort, Flags: bpftest.ACK}); action != actRedirect {
		t.Errorf("ACK: action %d", action)
	}
	if f := b.flows(); len(f) != halfWays || f[0].State != StateEstablished {
		t.Errorf("%d flows, first %+v", len(f), f[0])
	}
}

// When every entry of a bucket is in use the oldest gives way, so newcomers are not shut out.
func TestFullBucketInUseStillTakesNewOnes(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	clients := b.neighbours(halfWays + 1)
	for _, c := range clients {
		_, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		snat, _ := tuple(out)
		if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK}); action != actRedirect {
			t.Fatalf("SYN-ACK to %s: action %d", c, action)
		}
	}
	if b.isHalfOpen(clients[0]) || !b.isHalfOpen(clients[halfWays]) {
		t.Error("not the oldest gave way")
	}
	// Its own reply half is still there; the client's repeated SYN starts anew.
	if action, _ := b.fromClient(bpftest.Packet{Src: clients[0], Dst: vipPort, Flags: bpftest.SYN}); action != actRedirect {
		t.Errorf("repeated SYN: action %d", action)
	}
}

// What the programs put in user space finds and removes, whatever the protocol.
func TestUserSpaceFindsWhatTheProgramsPutIn(t *testing.T) {
	b := newBench(t, nil)
	udp := service(ModeFullNAT, endpoint1)
	udp.ID, udp.Protocol, udp.Endpoints[0].ID = 8, protoUDP, 108
	b.sync(service(ModeFullNAT, endpoint1), udp)
	for port := range uint16(50) {
		c := netip.AddrPortFrom(client, 20000+port)
		b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Protocol: protoUDP})
	}
	keys := b.halfKeys()
	if len(keys) != 200 {
		t.Fatalf("%d halves, want 200", len(keys))
	}
	for i := range keys {
		var half pontoonFlow
		if found, err := b.half.find(keys[i], &half); err != nil || !found {
			t.Fatalf("%+v: %t, %v", keys[i], found, err)
		}
	}
	if err := b.half.drop(keys[:100]); err != nil {
		t.Fatal(err)
	}
	if n := len(b.halfKeys()); n != 100 {
		t.Errorf("%d halves are left, want 100", n)
	}
}

// Two CPUs that get the same SYNs make each entry once, and the reader who takes entries out
// meanwhile harms none of it.
func TestNoHalfIsMadeTwice(t *testing.T) {
	b := newBench(t, nil)
	b.ns.Do(func() { b.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	const clients = 256
	frames := make([][]byte, clients)
	for i := range frames {
		frames[i] = loopFrame(netip.AddrPortFrom(client, uint16(30000+i)), vipPort, bpftest.SYN)
	}
	senders := []*replayer{newReplayer(t, frames), newReplayer(t, frames)}
	for range 20 {
		var wait sync.WaitGroup
		for _, s := range senders {
			wait.Go(func() { s.measure(t, b, b.programs.entry, 4*clients, actRedirect) })
		}
		wait.Go(func() {
			for _, key := range b.halfKeys() {
				if key.Sport%4 == 0 {
					_ = b.half.drop([]pontoonFlowKey{key})
				}
			}
		})
		wait.Wait()
		seen := map[pontoonFlowKey]bool{}
		for _, key := range b.halfKeys() {
			if seen[key] {
				t.Fatalf("%+v is there twice", key)
			}
			seen[key] = true
		}
		for i := range clients {
			if key := keyOf(netip.AddrPortFrom(client, uint16(30000+i)), vipPort); !seen[key] && key.Sport%4 != 0 {
				t.Fatalf("client %d has no entry", i)
			}
		}
	}
}

// A handshake outlives the daemon: the next one looks for it in the same bucket.
func TestHandshakeOutlivesARestart(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, _ := tuple(out)
	seed := b.half.seed
	_ = b.Close()
	b.Dataplane = openTest(t, b.ns, b.opts)
	if b.half.seed != seed || seed == 0 {
		t.Fatalf("seed %#x became %#x", seed, b.half.seed)
	}
	b.sync(service(ModeFullNAT, endpoint1))
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}); action != actRedirect {
		t.Errorf("ACK: action %d, drops %v", action, b.Stats().Drops)
	}
	if f := b.flows(); len(f) != 1 || f[0].State != StateEstablished {
		t.Errorf("flows: %+v", f)
	}
}

// A half-open table of another layout is replaced: what is in it lasts seconds. Connections stay.
func TestHalfOpenTableOfAnotherLayoutIsReplaced(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	_ = b.Close()
	path := filepath.Join(b.opts.PinDir, mapFolder, pontoonMapHalfOpen)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 40, ValueSize: 64, MaxEntries: 128})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(path); err != nil {
		t.Fatal(err)
	}
	b.Dataplane = openTest(t, b.ns, b.opts)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(netip.AddrPortFrom(client, 41000), vipPort)
	if f := b.flows(); len(f) != 2 {
		t.Errorf("%d flows, want 2", len(f))
	}
}
