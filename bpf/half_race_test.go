package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
	"pontoon/internal/roottest"
)

// Who knows one client's address and not the seed cannot make another that has its hash: whatever bits of
// two neighbouring words are turned over.
func TestHalfHashHasNoTwinsToBeForetold(t *testing.T) {
	base := keyOf(netip.MustParseAddrPort("[2001:db8:5:6:7:8:9:10]:40000"), netip.MustParseAddrPort("[2001:db8::100]:443"))
	turned := func(word int, bits uint64, key *pontoonFlowKey) {
		b := key.Saddr.B[:]
		if word > 1 {
			b = key.Daddr.B[:]
		}
		at := word % 2 * 8
		binary.LittleEndian.PutUint64(b[at:], binary.LittleEndian.Uint64(b[at:])^bits)
	}
	first := []uint64{1 << 63, 1<<63 | 1<<31, 1 << 31, 1 << 62, 1}
	second := []uint64{1 << 63, 1<<63 | 1<<31, 1 << 31, 1 << 62, 1}
	for word := range 3 {
		for _, x := range first {
			for _, y := range second {
				twin := base
				turned(word, x, &twin)
				turned(word+1, y, &twin)
				same := 0
				for range 64 {
					if seed := rand.Uint32(); halfHash(&base, seed) == halfHash(&twin, seed) {
						same++
					}
				}
				if same > 0 {
					t.Errorf("words %d and %d, bits %#x and %#x: one hash by %d of 64 seeds", word, word+1, x, y, same)
				}
			}
		}
	}
}

// However alike the keys are, buckets fill as if by chance: three in four places taken leave about
// one entry in twenty without one (a Poisson distribution says 5.2 in a hundred).
func TestHalfHashSpreadsKeysThatAreAlike(t *testing.T) {
	const buckets = 4096
	const entries = buckets * halfWays * 3 / 4
	v6 := netip.MustParseAddr("2001:db8:5:6::").As16()
	kinds := map[string]func(i int) pontoonFlowKey{
		"ports of one client": func(i int) pontoonFlowKey {
			return keyOf(netip.AddrPortFrom(client, uint16(1024+i)), netip.AddrPortFrom(vip, uint16(80+i>>15)))
		},
		"clients in a row": func(i int) pontoonFlowKey {
			return keyOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), 4242), vipPort)
		},
		"answers of one endpoint": func(i int) pontoonFlowKey {
			return keyOf(endpoint1, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 8, 0, byte(1 + i/8064)}), uint16(1024+i%8064)))
		},
		"clients of IPv6 in a row": func(i int) pontoonFlowKey {
			a := v6
			binary.BigEndian.PutUint32(a[12:], uint32(i))
			return keyOf(netip.AddrPortFrom(netip.AddrFrom16(a), 4242), netip.MustParseAddrPort("[2001:db8::100]:443"))
		},
		"networks of IPv6 in a row": func(i int) pontoonFlowKey {
			a := v6
			binary.BigEndian.PutUint32(a[4:], uint32(i))
			return keyOf(netip.AddrPortFrom(netip.AddrFrom16(a), 4242), netip.MustParseAddrPort("[2001:db8::100]:443"))
		},
	}
	for name, keyAt := range kinds {
		t.Run(name, func(t *testing.T) {
			for range 8 {
				var taken [buckets]int
				lost := 0
				seed := rand.Uint32() | 1
				for i := range entries {
					key := keyAt(i)
					at := halfHash(&key, seed) & 0xffffffff * buckets >> 32
					if taken[at]++; taken[at] > halfWays {
						lost++
					}
				}
				if share := float64(lost) / entries; share > 0.07 {
					t.Errorf("seed %#x: %.1f%% found no place", seed, 100*share)
				}
			}
		})
	}
}

// usurper puts two connections into one place of the half-open table by turns, as another CPU does whose
// connections need the room. It returns how to stop it.
func (b *bench) usurper(first, second pontoonFlowKey, one, two pontoonFlow) (stop func()) {
	hash := halfHash(&first, b.half.seed)
	bucket := &b.half.buckets[hash&0xffffffff*uint64(len(b.half.buckets))>>32]
	tags := [2]uint32{uint32(hash>>32) | 1, uint32(halfHash(&second, b.half.seed)>>32) | 1}
	keys, values := [2]pontoonFlowKey{first, second}, [2]pontoonFlow{one, two}
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; !over.Load(); i++ {
			atomic.AddUint32(&bucket.Version, 1)
			atomic.StoreUint32(&bucket.Tag[0], 0)
			bucket.Slot[0].Key, bucket.Slot[0].F = keys[i&1], values[i&1]
			atomic.StoreUint32(&bucket.Tag[0], tags[i&1])
			atomic.AddUint32(&bucket.Version, 1)
		}
	}()
	return func() {
		over.Store(true)
		<-done
	}
}

// contested is a pair of connections for usurper. The second is of another client, by another source to
// another endpoint; nobody but the usurper knows it.
func (b *bench) contested(state FlowState) (mine, other pontoonFlowKey, one, two pontoonFlow) {
	b.tb.Helper()
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	clients := b.neighbours(2)
	if action, _ := b.fromClient(bpftest.Packet{Src: clients[0], Dst: vipPort, Flags: bpftest.SYN}); action != actRedirect {
		b.tb.Fatalf("SYN: action %d", action)
	}
	mine, other = keyOf(clients[0], vipPort), keyOf(clients[1], vipPort)
	if found, err := b.half.find(mine, &one); err != nil || !found {
		b.tb.Fatal(found, err)
	}
	one.State = uint8(state)
	two = one
	two.NewSaddr, two.NewDaddr = toAddr(lbAddress), toAddr(endpoint2.Addr())
	two.NewSport, two.NewDport = swap16(63333), swap16(9999)
	return mine, other, one, two
}

// Whatever becomes of a place while a packet is rewritten by it, the packet does not go by another's entry, nor
// by half of one.
func TestNoPacketGoesByAnotherConnectionsEntry(t *testing.T) {
	roottest.NeedCPUs(t, 2)
	b := newBench(t, nil)
	mine, other, one, two := b.contested(StateSyn)
	wantSrc, wantDst := addrPort(one.NewSaddr, one.NewSport), addrPort(one.NewDaddr, one.NewDport)
	stop := b.usurper(mine, other, one, two)
	defer stop()
	forwarded := 0
	packet := bpftest.Packet{Src: addrPort(mine.Saddr, mine.Sport), Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("secret")}
	for begun := time.Now(); time.Since(begun) < 3*time.Second; {
		action, out := b.fromClient(packet)
		if action == actDrop {
			continue
		}
		forwarded++
		if src, dst := tuple(out); src != wantSrc || dst != wantDst {
			t.Fatalf("after %d packets one went from %s to %s, want %s to %s", forwarded, src, dst, wantSrc, wantDst)
		}
	}
	if forwarded == 0 {
		t.Error("no packet found its entry")
	}
	t.Logf("%d packets forwarded", forwarded)
}

// Nor does it become a connection that is half another's.
func TestNoConnectionIsMadeOfAnothersEntry(t *testing.T) {
	roottest.NeedCPUs(t, 2)
	b := newBench(t, nil)
	mine, other, one, two := b.contested(StateSynAck)
	stop := b.usurper(mine, other, one, two)
	defer stop()
	made := 0
	packet := bpftest.Packet{Src: addrPort(mine.Saddr, mine.Sport), Dst: vipPort, Flags: bpftest.ACK}
	for begun := time.Now(); time.Since(begun) < 3*time.Second; {
		b.fromClient(packet)
		var f pontoonFlow
		found, err := lookup(b.maps.Flows, mine, &f)
		if err != nil {
			t.Fatal(err)
		}
		if !found {
			continue
		}
		made++
		if !samePair(&mine, &f, &one) {
			t.Fatalf("after %d connections one leads to %s", made, addrPort(f.NewDaddr, f.NewDport))
		}
		if err := b.remove(b.flowTable(), removal{forwards: []pontoonFlowKey{mine}, replies: []pontoonFlowKey{otherKey(&mine, &f)}}); err != nil {
			t.Fatal(err)
		}
	}
	if made == 0 {
		t.Error("no connection was made")
	}
	t.Logf("%d connections made", made)
}

// When the bucket of the other half is held for long, by a CPU that was stopped, the connection goes on; its next
// packet puts that half back.
func TestConnectionOutlivesABucketThatIsHeld(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.Protocol = protoUDP
	b.sync(s)
	packet := bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: protoUDP, Payload: []byte("one way")}
	_, first := b.fromClient(packet)
	key := keyOf(clientPort, vipPort)
	key.Proto = protoUDP
	var half pontoonFlow
	if found, err := b.half.find(key, &half); err != nil || !found {
		t.Fatal(found, err)
	}
	other := otherKey(&key, &half)
	bucket, way, tag := b.half.place(&other)
	bucket.Tag[way] = 0
	bucket.Lock = 1
	for range 2 {
		if action, out := b.fromClient(packet); action != actRedirect || !bytes.Equal(out[14:], first[14:]) {
			t.Errorf("action %d, drops %v\n%x, before\n%x", action, b.Stats().Drops, out, first)
		}
	}
	bucket.Lock = 0
	b.fromClient(packet)
	if again, at, _ := b.half.place(&other); again != bucket || bucket.Tag[at] != tag {
		t.Error("the other half is not back")
	}
}
