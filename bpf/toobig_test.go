package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// expectTooBig demands that the sender was told the MTU by the address it had sent to.
func expectTooBig(t *testing.T, b *bench, action uint32, got []byte, from, to netip.Addr, mtu uint32) {
	t.Helper()
	if action != actRedirect {
		t.Fatalf("action %d, drops %v", action, b.Stats().Drops)
	}
	if err := bpftest.VerifyDatagram(got); err != nil {
		t.Error(err)
	}
	ip := got[14:]
	src, dst, icmp, kind := ip[12:16], ip[16:20], ip[20:], []byte{3, 4}
	if to.Is6() {
		src, dst, icmp, kind = ip[8:24], ip[24:40], ip[40:], []byte{2, 0}
	}
	a, _ := netip.AddrFromSlice(src)
	c, _ := netip.AddrFromSlice(dst)
	if a != from || c != to || icmp[0] != kind[0] || icmp[1] != kind[1] || binary.BigEndian.Uint32(icmp[4:]) != mtu {
		t.Errorf("%s told %s: %x, want MTU %d", a, c, icmp[:8], mtu)
	}
	if n := b.Stats().Counters["too_big"]; n != 1 {
		t.Errorf("%d answers counted", n)
	}
}

func TestSenderIsToldWhatFitsIntoTheTunnel(t *testing.T) {
	for _, six := range []bool{false, true} {
		d := newDirect(t, six, bpftest.ProtocolTCP, TunnelIPIP)
		d.send(bpftest.Datagram{Flags: bpftest.SYN})
		d.send(bpftest.Datagram{Flags: bpftest.ACK})
		fits, mtu := 1480-40, uint32(1480)
		if six {
			fits, mtu = 1460-60, 1460
		}
		if action, _, got := d.send(bpftest.Datagram{Flags: bpftest.ACK, Payload: make([]byte, fits), DontFragment: true}); action != actRedirect || len(got) != 14+1500 {
			t.Errorf("the largest packet that fits: action %d, %d bytes", action, len(got))
		}
		action, _, got := d.send(bpftest.Datagram{Flags: bpftest.ACK, Payload: make([]byte, fits+1), DontFragment: true})
		expectTooBig(t, d.bench, action, got, d.vip.Addr(), d.client.Addr(), mtu)
	}
}

func TestSenderIsToldWhatFitsTheOtherFamily(t *testing.T) {
	eachFamily(t, bpftest.ProtocolTCP, func(t *testing.T, c *crossing, six bool) {
		c.out.SetMTU(1400)
		c.FlushNextHops()
		fits, mtu := 1400-60, uint32(1380)
		if six {
			fits, mtu = 1400-40, 1420
		}
		if action, got := c.forward(bpftest.Datagram{Flags: bpftest.ACK, Payload: make([]byte, fits)}); action != actRedirect || len(got) != 14+1400 {
			t.Errorf("the largest packet that fits: action %d, %d bytes, drops %v", action, len(got), c.Stats().Drops)
		}
		action, got := c.forward(bpftest.Datagram{Flags: bpftest.ACK, Payload: make([]byte, fits+1)})
		expectTooBig(t, c.bench, action, got, c.vip.Addr(), c.client.Addr(), mtu)
	})
}

// The tunnel takes 20 or 40 bytes of links of 1500, so the client has to learn what fits.
func TestRealClientLearnsWhatFitsIntoTheTunnel(t *testing.T) {
	client, d := newDirectLab(t, TunnelIPIP, HookAuto, 1500)
	for _, address := range []netip.Addr{vip, vipSix} {
		c, err := client.Dial(&net.Dialer{Timeout: 10 * time.Second}, "tcp", netip.AddrPortFrom(address, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		if err := transfer(c, 4<<20, nil); err != nil {
			t.Fatalf("%s: %v\n%+v", address, err, d.Stats())
		}
	}
	if n := d.Stats().Counters["too_big"]; n < 2 {
		t.Errorf("told %d times", n)
	}
}
