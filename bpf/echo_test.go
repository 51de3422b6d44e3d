package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// probe is a neighbour's echo to the load balancer's own address.
func (d *duo) probe() bpftest.Frame {
	ends := ports{netip.AddrPortFrom(d.client, 49160), netip.AddrPortFrom(d.lb, 3785)}
	f := ends.frame(bpftest.ProtoUDP, 0, append([]byte("PTEC"), bytes.Repeat([]byte{0xab}, 20)...))
	f.TTL = 255
	return f
}

func TestProbesOfNeighboursGoBackAsTheyCame(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			d := newDuo(t, f, nil)
			d.serve(ModeFullNAT, protoTCP)
			for name, vlan := range map[string]uint16{"plain": 0, "tagged": 23} {
				in := d.probe()
				in.VLAN = vlan
				d.side(true, &in)
				action, out := d.send(true, in)
				l := d.expectAnswer(t, in, action, out)
				if l.TTL != 254 {
					t.Errorf("%s: comes back with %d hops to live: it could go round", name, l.TTL)
				}
				if l.SrcP.Port() != 3785 || l.DstP.Port() != 49160 || !bytes.Equal(l.L4[8:], in.L4[8:]) {
					t.Errorf("%s: comes back as %v -> %v, %x", name, l.SrcP, l.DstP, l.L4)
				}
			}
			if n := d.Stats().Counters["echoed"]; n != 2 {
				t.Errorf("%d probes counted", n)
			}
		})
	}
}

// Nothing but a probe from this very link comes back: this must not be a mirror for others.
func TestWhatIsNoProbeIsLeftToTheHost(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			d := newDuo(t, f, nil)
			d.serve(ModeFullNAT, protoTCP)
			rows := map[string]func(*bpftest.Frame){
				"routed here":      func(f *bpftest.Frame) { f.TTL = 254 },
				"for another host": func(f *bpftest.Frame) { f.DstMAC = d.end.MAC },
				"options": func(f *bpftest.Frame) {
					f.Options = bytes.Repeat([]byte{1}, 8)
					f.Extensions, f.FirstHeader = bpftest.Extension(17, 8), 60
				},
				"a first fragment":  func(f *bpftest.Frame) { f.More = true; f.ID = 7 },
				"other payload":     func(f *bpftest.Frame) { *f = d.probePayload(append([]byte("PTEX"), make([]byte, 20)...)) },
				"a longer payload":  func(f *bpftest.Frame) { *f = d.probePayload(append([]byte("PTEC"), make([]byte, 21)...)) },
				"a shorter payload": func(f *bpftest.Frame) { *f = d.probePayload([]byte("PTEC")) },
			}
			for name, change := range rows {
				in := d.probe()
				d.side(true, &in)
				change(&in)
				if in.SrcMAC == nil {
					d.side(true, &in)
				}
				if action, out := d.run(d.in, in.Bytes()); action != actPass || !bytes.Equal(out, in.Bytes()) {
					t.Errorf("%s: action %d", name, action)
				}
			}
			if n := d.Stats().Counters["echoed"]; n != 0 {
				t.Errorf("%d probes counted", n)
			}
		})
	}
}

func (d *duo) probePayload(payload []byte) bpftest.Frame {
	ends := ports{netip.AddrPortFrom(d.client, 49160), netip.AddrPortFrom(d.lb, 3785)}
	f := ends.frame(bpftest.ProtoUDP, 0, payload)
	f.TTL = 255
	return f
}
