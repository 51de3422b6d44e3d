package benchtest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"pontoon/internal/roottest"
)

const xdpRedirect = 4

var testFrame = frameSpec{
	from: netip.MustParseAddrPort("10.80.1.101:0"), to: netip.MustParseAddrPort("10.80.1.200:7007"),
	src: net.HardwareAddr{2, 0, 0, 0, 0, 1}, dst: net.HardwareAddr{2, 0, 0, 0, 0, 2},
}

func TestGeneratorWritesAValidPacketOverWhateverWasThere(t *testing.T) {
	roottest.Need(t)
	g, err := newGenerator(testFrame, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	ports := map[uint16]bool{}
	for range 200 {
		in := make([]byte, frameBytes)
		for i := range headerBytes {
			in[i] = 0xa5
		}
		out := make([]byte, frameBytes)
		ret, err := g.prog.Run(&ebpf.RunOptions{Data: in, DataOut: out})
		if err != nil {
			t.Fatal(err)
		}
		if ret != xdpRedirect {
			t.Fatalf("verdict %d, want a redirect", ret)
		}
		be := binary.BigEndian
		port := be.Uint16(out[34:])
		if port < udpFirstPort || port >= udpFirstPort+udpFlows {
			t.Fatalf("source port %d", port)
		}
		ports[port] = true
		if s := fold(sum16(out[14:34])); s != 0xffff {
			t.Fatalf("sum of the IPv4 header %#x", s)
		}
		if s := fold(sum16(out[26:]) + 17 + frameBytes - 34); s != 0xffff || be.Uint16(out[40:]) == 0 {
			t.Fatalf("sum of the UDP datagram %#x, checksum %#x", s, be.Uint16(out[40:]))
		}
		want := testFrame.header()
		if got := [12]byte(out); got != [12]byte(want[:]) {
			t.Fatalf("hardware addresses %x", got)
		}
		if be.Uint16(out[36:]) != testFrame.to.Port() || be.Uint16(out[38:]) != frameBytes-34 {
			t.Fatalf("destination port and length % x", out[36:40])
		}
	}
	if len(ports) < 100 {
		t.Errorf("only %d source ports in 200 packets", len(ports))
	}
}

func TestCounterTakesOnlyItsPackets(t *testing.T) {
	roottest.Need(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, hook := range []struct {
		name            string
		kind            ebpf.ProgramType
		data, end       int16
		swallow, passed int32
	}{
		{"xdp", ebpf.XDP, xdpData, xdpDataEnd, xdpDrop, xdpPass},
		{"tc", ebpf.SchedCLS, skbData, skbDataEnd, tcxDrop, tcxNext},
	} {
		t.Run(hook.name, func(t *testing.T) {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: hook.kind, License: "GPL",
				Instructions: counterProgram(m, UDPPort, hook.data, hook.end, hook.swallow, hook.passed),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer prog.Close()
			c := &counter{counts: m, prog: prog}
			h := testFrame.header()
			ours := append(h[:], make([]byte, frameBytes-headerBytes)...)
			other := append([]byte(nil), ours...)
			other[37]++
			tcp := append([]byte(nil), ours...)
			tcp[23] = 6
			for _, p := range []struct {
				name string
				data []byte
				want int32
			}{{"ours", ours, hook.swallow}, {"another port", other, hook.passed}, {"tcp", tcp, hook.passed}} {
				before := c.total()
				ret, err := prog.Run(&ebpf.RunOptions{Data: p.data})
				if err != nil {
					t.Fatal(err)
				}
				counted := c.total() - before
				if int32(ret) != p.want || (counted == 1) != (p.want == hook.swallow) {
					t.Errorf("%s: verdict %d, counted %d", p.name, int32(ret), counted)
				}
			}
		})
	}
}
