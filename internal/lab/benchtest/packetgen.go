package benchtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

const (
	udpFlows     = 4096  // a power of two
	udpFirstPort = 20000 // source ports of the flows
	frameBytes   = 60    // 64 on the wire, with the checksum that veth has not
	headerBytes  = 14 + 20 + 8
	frameChunk   = 1 << 18 // frames per call: each call makes the kernel patch its own code and wait for RCU
	liveFrames   = 1 << 1  // BPF_F_TEST_XDP_LIVE_FRAMES
	xdpDrop      = 1
	xdpPass      = 2
)

// Offsets into struct xdp_md and struct __sk_buff (linux/bpf.h).
const (
	xdpData, xdpDataEnd = 0, 4
	skbData, skbDataEnd = 76, 80
)

// frameSpec is the packet that is sent, but for its source port.
type frameSpec struct {
	from, to netip.AddrPort
	src, dst net.HardwareAddr
}

// header builds the Ethernet, IPv4 and UDP headers, with neither source port
// nor UDP checksum. The payload is zeros.
func (f frameSpec) header() [headerBytes]byte {
	var h [headerBytes]byte
	copy(h[0:], f.dst)
	copy(h[6:], f.src)
	be := binary.BigEndian
	be.PutUint16(h[12:], 0x0800)
	ip := h[14:34]
	ip[0] = 0x45
	be.PutUint16(ip[2:], frameBytes-14)
	be.PutUint16(ip[6:], 0x4000) // do not fragment
	ip[8], ip[9] = 64, 17
	src, dst := f.from.Addr().As4(), f.to.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	be.PutUint16(ip[10:], ^fold(sum16(ip)))
	be.PutUint16(h[36:], f.to.Port())
	be.PutUint16(h[38:], frameBytes-34)
	return h
}

// udpSum is the sum that the UDP checksum is made of (RFC 768), without the
// source port.
func (f frameSpec) udpSum() uint16 {
	h := f.header()
	const udpLength = frameBytes - 34
	return fold(sum16(h[26:]) + 17 + udpLength) // addresses, header; payload is zero
}

// sum16 adds up big-endian words (RFC 1071).
func sum16(b []byte) uint32 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// generatorProgram writes the frame's headers with one of udpFlows source
// ports, by chance, and sends it out of an interface. It writes all of them
// each time: in live mode the kernel uses a page again with what the last
// receiver had made of it.
func (f frameSpec) generatorProgram(ifindex int) asm.Instructions {
	h := f.header()
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.And.Imm(asm.R8, udpFlows-1),
		asm.Add.Imm(asm.R8, udpFirstPort),
		asm.LoadMem(asm.R7, asm.R6, xdpData, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, xdpDataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R7),
		asm.Add.Imm(asm.R4, headerBytes),
		asm.JGT.Reg(asm.R4, asm.R3, "short"),
	}
	const words = headerBytes / 8 * 8 // up to the last two bytes, the UDP checksum
	for i := 0; i < words; i += 8 {
		ins = append(ins,
			asm.LoadImm(asm.R1, int64(binary.NativeEndian.Uint64(h[i:])), asm.DWord),
			asm.StoreMem(asm.R7, int16(i), asm.R1, asm.DWord))
	}
	return append(ins,
		// checksum = not (sum + port), folded; zero would say that there is none
		asm.Mov.Imm(asm.R2, int32(f.udpSum())),
		asm.Add.Reg(asm.R2, asm.R8),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.RSh.Imm(asm.R3, 16),
		asm.And.Imm(asm.R2, 0xffff),
		asm.Add.Reg(asm.R2, asm.R3),
		asm.Xor.Imm(asm.R2, 0xffff),
		asm.And.Imm(asm.R2, 0xffff),
		asm.JNE.Imm(asm.R2, 0, "sum"),
		asm.Mov.Imm(asm.R2, 0xffff),
		asm.HostTo(asm.BE, asm.R2, asm.Half).WithSymbol("sum"),
		asm.StoreMem(asm.R7, 40, asm.R2, asm.Half),
		asm.HostTo(asm.BE, asm.R8, asm.Half),
		asm.StoreMem(asm.R7, 34, asm.R8, asm.Half),
		asm.Mov.Imm(asm.R1, int32(ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("short"),
		asm.Return(),
	)
}

// generator sends frames.
type generator struct {
	prog *ebpf.Program
	sent uint64
}

// newGenerator makes one that sends out of the interface of that number in the
// namespace it runs in.
func newGenerator(f frameSpec, ifindex int) (*generator, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "pt_generator", Type: ebpf.XDP, License: "GPL", Instructions: f.generatorProgram(ifindex),
	})
	if err != nil {
		return nil, fmt.Errorf("load packet generator: %w", err)
	}
	return &generator{prog: prog}, nil
}

func (g *generator) close() { g.prog.Close() }

// run sends as fast as it can until ctx ends. The thread must be in the
// sender's namespace.
func (g *generator) run(ctx context.Context) error {
	data := make([]byte, frameBytes)
	for ctx.Err() == nil {
		_, err := g.prog.Run(&ebpf.RunOptions{Data: data, Repeat: frameChunk, Flags: liveFrames})
		if err != nil {
			return fmt.Errorf("send frames: %w", err)
		}
		g.sent += frameChunk
	}
	return nil
}

// counterProgram counts and swallows UDP packets to a port and lets everything
// else pass. It reads the packet by the offsets of its kind of context.
func counterProgram(m *ebpf.Map, port uint16, data, dataEnd int16, swallow, pass int32) asm.Instructions {
	big := func(v uint16) int32 {
		var b [2]byte
		binary.BigEndian.PutUint16(b[:], v)
		return int32(binary.NativeEndian.Uint16(b[:]))
	}
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, dataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, headerBytes),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R5, big(0x0800), "pass"),
		asm.LoadMem(asm.R5, asm.R2, 14, asm.Byte),
		asm.JNE.Imm(asm.R5, 0x45, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 23, asm.Byte),
		asm.JNE.Imm(asm.R5, 17, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 36, asm.Half),
		asm.JNE.Imm(asm.R5, big(port), "pass"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, swallow),
		asm.Return(),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
	}
}
