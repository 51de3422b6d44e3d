package bpf

import (
	"errors"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Offsets of struct __sk_buff.
const (
	skbData    = 76
	skbDataEnd = 80
	skbGSOSize = 176
)

// watchPayload notes of the bundles of TCP over IPv4 that come in on an interface how many bytes of payload lie in
// the linear part: [0] the most, [1] how many bundles there were. Their headers differ: where a segment was lost, those on the
// way back have an option more.
func watchPayload(tb testing.TB, ns *bpftest.NS, ifindex int) func() (most, bundles uint64) {
	tb.Helper()
	noted := mustMap(tb, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	program := mustProgram(tb, asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, skbGSOSize, asm.Word),
		asm.JEq.Imm(asm.R7, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 14+20+12),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -8), asm.Mov.Imm(asm.R4, 1),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, noted.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R2, asm.R0, 8, asm.DWord),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R0, 8, asm.R2, asm.DWord),
		asm.LoadMem(asm.R3, asm.R6, skbDataEnd, asm.Word),
		asm.LoadMem(asm.R4, asm.R6, skbData, asm.Word),
		asm.Sub.Reg(asm.R3, asm.R4),
		asm.Sub.Imm(asm.R3, 14+20), // Ethernet, IPv4
		asm.LoadMem(asm.R4, asm.RFP, -8, asm.Byte),
		asm.And.Imm(asm.R4, 0xf0), // words of the TCP header, in the upper half
		asm.RSh.Imm(asm.R4, 2),
		asm.Sub.Reg(asm.R3, asm.R4),
		asm.JSLT.Imm(asm.R3, 0, "out"), // not even the headers
		asm.LoadMem(asm.R2, asm.R0, 0, asm.DWord),
		asm.JGE.Reg(asm.R2, asm.R3, "out"),
		asm.StoreMem(asm.R0, 0, asm.R3, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	})
	var l link.Link
	var err error
	ns.Do(func() {
		l, err = link.AttachTCX(link.TCXOptions{Program: program, Interface: ifindex, Attach: ebpf.AttachTCXIngress})
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		tb.Skip("this kernel has no TCX")
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	return func() (uint64, uint64) {
		var values [2]uint64
		if err := noted.Lookup(uint32(0), &values); err != nil {
			tb.Fatal(err)
		}
		return values[0], values[1]
	}
}

// A socket's bundles have nothing but headers in the linear part. They leave as they came: payload
// pulled behind the headers would cost a copy of them for each bundle, and the receiver could not join bundles.
func TestPayloadOfBundlesStaysWhereItIs(t *testing.T) {
	l := newLab(t, false, 1)
	l.serve()
	d := l.open(0, nil)
	runDataplane(t, d)
	l.sync(d, ModeFullNAT, protoTCP)
	var at [2]func() (uint64, uint64)
	for i, e := range l.endpoints {
		at[i] = watchPayload(t, e, e.Lookup("eth1").Index)
	}
	c := l.dial()
	defer c.Close()
	if err := transfer(c, 16<<20, func(int) {}); err != nil {
		t.Fatal(err)
	}
	bundles := uint64(0)
	for _, noted := range at {
		most, n := noted()
		bundles += n
		if most > 0 {
			t.Errorf("%d bytes of payload in the linear part of a bundle", most)
		}
	}
	if bundles < 50 {
		t.Errorf("only %d bundles came", bundles)
	}
}
