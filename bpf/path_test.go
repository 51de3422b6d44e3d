package bpf

import (
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

func TestHandshakeSmoke(t *testing.T) {
	b := newBench(t, nil)
	t.Log(b.Interfaces(), b.clock.hz)
	b.sync(service(ModeFullNAT, endpoint1))
	c := netip.AddrPortFrom(client, 40000)
	v := netip.AddrPortFrom(vip, 80)
	a, out := b.fromClient(bpftest.Packet{Src: c, Dst: v, Flags: bpftest.SYN, TCPOptions: true})
	t.Log(a, bpftest.VerifyChecksums(out))
	t.Logf("%+v", b.flows())
	t.Log(b.Stats())
}
