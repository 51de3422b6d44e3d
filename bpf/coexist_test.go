package bpf

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// counting returns a program that counts packets and passes them on, and its counter.
func counting(t *testing.T) (*ebpf.Program, func() uint64) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p, func() uint64 {
		var n uint64
		if err := m.Lookup(uint32(0), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// Another program that sits behind ours sees what is not ours, and only that.
func TestOtherProgramsOnTheInterfaceGoOnWorking(t *testing.T) {
	b := newBench(t, nil)
	if b.Interfaces()["eth1"].Hook != usedTCX {
		t.Skip("no TCX on this kernel")
	}
	program, count := counting(t)
	b.ns.Do(func() {
		l, err := link.AttachTCX(link.TCXOptions{Interface: b.in.Index, Program: program, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	})
	b.sync(service(ModeFullNAT, endpoint1))
	b.far.Address(client.String() + "/24")
	b.far.Neighbour(vip.String(), b.in.MAC)
	b.far.Neighbour(lbAddress.String(), b.in.MAC)
	send := func(address string) {
		t.Helper()
		c, err := b.far.NS.Dial(&net.Dialer{}, "udp4", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("datagram")); err != nil {
			t.Fatal(err)
		}
	}
	before := count()
	send(lbAddress.String() + ":9999")
	eventually(t, "datagram for the host", func() error {
		if n := count() - before; n == 0 {
			return fmt.Errorf("the program behind saw %d packets", n)
		}
		return nil
	})
	// To the VIP, no service: ours, and dropped.
	dropped := b.drops("no_service")
	before = count()
	for range 5 {
		send(vip.String() + ":9999")
	}
	eventually(t, "datagrams for the VIP", func() error {
		if n := b.drops("no_service") - dropped; n != 5 {
			return fmt.Errorf("%d dropped", n)
		}
		return nil
	})
	if n := count() - before; n >= 5 {
		t.Errorf("the program behind saw %d packets, among them ours", n)
	}
}

// The VIP answers echo requests as long as the host holds it.
func TestHostAnswersPing(t *testing.T) {
	l := newLab(t, false, 1)
	d := l.open(0, nil)
	l.sync(d, ModeFullNAT, protoTCP)
	var conn net.PacketConn
	l.client.Do(func() {
		var err error
		if conn, err = net.ListenPacket("ip4:icmp", client.String()); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	echo := []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1} // type 8, checksum, identifier 1, sequence 1
	eventually(t, "echo reply", func() error {
		if _, err := conn.WriteTo(echo, &net.IPAddr{IP: vip.AsSlice()}); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		answer := make([]byte, 64)
		n, from, err := conn.ReadFrom(answer)
		if err != nil {
			return err
		}
		if n < 8 || answer[0] != 0 || from.String() != vip.String() {
			return fmt.Errorf("%x from %s", answer[:n], from)
		}
		return nil
	})
	if d.Stats().Counters["echo"] == 0 {
		t.Error("not counted")
	}
}
