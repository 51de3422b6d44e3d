package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
)

// victim is a bench with one established flow that no frame may damage.
type victim struct {
	*bench
	keys   [2]pontoonFlowKey
	before [2]pontoonFlow
}

func newVictim(tb testing.TB, hook string) *victim {
	tb.Helper()
	v := &victim{bench: newBench(tb, func(o *Options) { o.Hook, o.without = hook, nil })}
	udp := service(ModeDNAT, endpoint2)
	udp.ID, udp.Protocol = 8, protoUDP
	v.sync(service(ModeFullNAT, endpoint1), udp)
	v.talk(clientPort, vipPort)
	for part, err := range dump(tb.Context(), v.maps.Flows) {
		if err != nil {
			tb.Fatal(err)
		}
		if n := copy(v.keys[:], part.keys); n != 2 {
			tb.Fatalf("%d halves", n)
		}
		copy(v.before[:], part.values)
	}
	return v
}

// seeds are frames that reach every branch of the parser.
func (v *victim) seeds() [][]byte {
	base := bpftest.Packet{SrcMAC: v.far.MAC, DstMAC: v.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("payload")}
	var out [][]byte
	for _, change := range []func(*bpftest.Packet){
		func(*bpftest.Packet) {},
		func(p *bpftest.Packet) { p.Flags = bpftest.SYN },
		func(p *bpftest.Packet) { p.Flags, p.TCPOptions, p.IPOptions = bpftest.FIN, true, true },
		func(p *bpftest.Packet) { p.Flags = bpftest.RST },
		func(p *bpftest.Packet) { p.Protocol = layers.IPProtocolUDP },
		func(p *bpftest.Packet) { p.Protocol, p.NoUDPChecksum = layers.IPProtocolUDP, true },
		func(p *bpftest.Packet) { p.Protocol, p.ICMPType = layers.IPProtocolICMPv4, 8 },
		func(p *bpftest.Packet) { p.Fragment = 3 },
		func(p *bpftest.Packet) { p.Dst, p.Flags = endpoint1, bpftest.SYN },
		func(p *bpftest.Packet) { p.TTL = 1 },
	} {
		p := base
		change(&p)
		out = append(out, p.Bytes(v.tb))
	}
	return out
}

// try runs one frame as it comes in on the clients' side: through XDP where it is attached, and what that
// leaves, which must be as it was, through TC. False: the kernel refused it before it reached a program.
func (b *bench) try(tb testing.TB, frame []byte) (action uint32, out []byte, ran bool) {
	tb.Helper()
	if len(frame) < 14 || len(frame) > 1500 {
		return 0, nil, false
	}
	options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	var err error
	if b.programs.xdp != nil {
		options.Context = xdpMD{DataEnd: uint32(len(frame)), IngressIfindex: uint32(b.in.Index)}
		b.ns.With(tb).Do(func() { action, err = b.programs.xdp.Run(options) })
		switch {
		case err != nil:
		case action == xdpTX || action == xdpRedirect:
			return actRedirect, options.DataOut, true
		case action == xdpDrop:
			return actDrop, nil, true
		case action != xdpPass:
			tb.Fatalf("XDP action %d for %x", action, frame)
		case !bytes.Equal(frame, options.DataOut):
			tb.Fatalf("left to TC, yet changed: %x -> %x", frame, options.DataOut)
		}
		options.DataOut = make([]byte, len(frame)+256)
	}
	options.Context = skBuff{Ifindex: uint32(b.in.Index)}
	b.ns.With(tb).Do(func() { action, err = b.programs.entry.Run(options) })
	return action, options.DataOut, err == nil
}

// check runs one frame and says what must hold for every frame whatever.
func (v *victim) check(tb testing.TB, frame []byte) {
	action, out, ran := v.try(tb, frame)
	if !ran {
		return
	}
	switch action {
	case actPass:
		if !bytes.Equal(frame, out) {
			tb.Fatalf("passed on, yet changed: %x -> %x", frame, out)
		}
	case actRedirect:
		if bpftest.VerifyChecksums(frame) == nil && bpftest.VerifyChecksums(out) != nil {
			tb.Fatalf("checksums were right and are wrong now: %x -> %x", frame, out)
		}
	case actDrop:
	default:
		tb.Fatalf("action %d for %x", action, frame)
	}
	v.unharmed(tb, frame)
}

// unharmed compares the established flow with what it was. A frame of its own tuple may count,
// close or revive it, but never lead it elsewhere.
func (v *victim) unharmed(tb testing.TB, frame []byte) {
	own := v.ofVictim(frame)
	for i, key := range v.keys {
		var now pontoonFlow
		found, err := lookup(v.maps.Flows, key, &now)
		if err != nil {
			tb.Fatal(err)
		}
		was := v.before[i]
		if own {
			if !found { // a SYN after a RST: a new connection takes its place
				v.restore(tb)
				return
			}
			was.LastSeen, was.State, was.Flags = now.LastSeen, now.State, now.Flags
			was.setCounters(now.packets(), now.bytes())
		}
		if now != was {
			tb.Fatalf("flow changed from %+v to %+v by %x", v.before[i], now, frame)
		}
	}
	if own {
		v.restore(tb)
	}
}

func (v *victim) restore(tb testing.TB) {
	if _, err := v.maps.Flows.BatchUpdate(v.keys[:], v.before[:], nil); err != nil {
		tb.Fatal(err)
	}
}

// ofVictim tells whether the frame carries the tuple of the flow: TCP in an unfragmented IPv4
// packet for us.
func (v *victim) ofVictim(frame []byte) bool {
	if len(frame) < 34 || !bytes.Equal(frame[:6], v.in.MAC) || frame[12] != 8 || frame[13] != 0 {
		return false
	}
	ip := frame[14:]
	header := int(ip[0]&15) * 4
	if ip[0]>>4 != 4 || header < 20 || len(ip) < header+20 || ip[9] != protoTCP || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return false
	}
	src, dst := tuple(frame)
	for _, key := range v.keys {
		if src == addrPort(key.Saddr, key.Sport) && dst == addrPort(key.Daddr, key.Dport) {
			return true
		}
	}
	return false
}

func FuzzFrames(f *testing.F)    { fuzzFrames(f, HookTC) }
func FuzzFramesXDP(f *testing.F) { fuzzFrames(f, HookXDP) }

func fuzzFrames(f *testing.F, hook string) {
	v := newVictim(f, hook)
	for _, seed := range v.seeds() {
		// The MAC of the bench differs from run to run: seeds are stored without it.
		f.Add(seed[12:])
	}
	f.Fuzz(func(t *testing.T, rest []byte) {
		frame := append(append(bytes.Clone([]byte(v.in.MAC)), v.far.MAC...), rest...)
		v.check(t, frame)
	})
}

// mutated is one of the seeds with some bytes changed, cut off or put behind.
func mutated(random *rand.Rand, seeds [][]byte) []byte {
	frame := bytes.Clone(seeds[random.IntN(len(seeds))])
	for range random.IntN(4) {
		frame[12+random.IntN(len(frame)-12)] = byte(random.Uint32())
	}
	switch random.IntN(8) {
	case 0:
		frame = frame[:14+random.IntN(len(frame)-14)]
	case 1:
		frame = append(frame, make([]byte, random.IntN(200))...)
	}
	return frame
}

// A bounded run of what fuzzing does, in every test run: mutations of the seeds.
func TestRandomFramesHarmNothing(t *testing.T) {
	for _, hook := range []string{HookTC, HookXDP} {
		t.Run(hook, func(t *testing.T) { randomFrames(t, hook) })
	}
}

func randomFrames(t *testing.T, hook string) {
	v := newVictim(t, hook)
	seeds := v.seeds()
	const seed = 20261122
	random := rand.New(rand.NewPCG(seed, seed))
	for range 20_000 {
		v.check(t, mutated(random, seeds))
	}
	if n := v.Stats().Counters["promoted"]; n != 1 {
		t.Errorf("%d flows were established by noise", n-1)
	}
}
