package bpftest

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Generator makes TCP connections in a data plane from inside the kernel. A program of its own writes the
// next packet of a handshake where the one before it stood and calls the entry program, so that one test
// run makes as many connections as are wanted and a system call costs none of them anything: SYN from
// client n, SYN-ACK (what the data plane made of the SYN, turned around), ACK from client n. That works
// with every mode in which replies pass the data plane.
//
// Its methods are for one goroutine at a time, but Opened and Made, which any may call.
type Generator struct {
	program *ebpf.Program
	state   *ebpf.Map
	target  *ebpf.Map
	memory  []byte
	shared  *generatorState
	frame   []byte
}

// generatorState is what program and user space share.
type generatorState struct {
	opened uint64 // SYNs written
	made   uint64 // handshakes written to their end
	vip    [4]byte
	port   [2]byte
	_      [2]byte
}

// GeneratorClients is where clients live: 32768 connections have one address, from port 1024 on.
var GeneratorClients = netip.MustParsePrefix("172.16.0.0/12")

// NewGenerator makes connections to an IPv4 VIP through the injector's program, which must outlive it.
func NewGenerator(i *Injector, vip netip.AddrPort) (g *Generator, err error) {
	g = &Generator{frame: make([]byte, generatedFrame)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
			g = nil
		}
	}()
	g.state, err = ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(generatorState{})), MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return g, fmt.Errorf("make state of generator: %w", err)
	}
	g.memory, err = unix.Mmap(g.state.FD(), 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return g, fmt.Errorf("map state of generator: %w", err)
	}
	g.shared = (*generatorState)(unsafe.Pointer(&g.memory[0]))
	g.SetVIP(vip)
	g.target, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err == nil {
		err = g.target.Put(uint32(0), i.program)
	}
	if err != nil {
		return g, fmt.Errorf("make program array of generator: %w", err)
	}
	g.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, Instructions: generatorCode(g.state.FD(), g.target.FD()), License: "Dual BSD/GPL",
	})
	if err != nil {
		return g, fmt.Errorf("load generator: %w", err)
	}
	b := g.frame
	b[12], b[13] = 0x08, 0x00
	b[14], b[17], b[22], b[23] = 0x45, generatedFrame-14, 64, unix.IPPROTO_TCP
	b[46] = 5 << 4 // words of the TCP header
	return g, nil
}

// Close lets go of everything.
func (g *Generator) Close() error {
	var errs []error
	if g.program != nil {
		errs = append(errs, g.program.Close())
	}
	if g.memory != nil {
		errs = append(errs, unix.Munmap(g.memory))
		g.shared, g.memory = nil, nil
	}
	for _, m := range []*ebpf.Map{g.state, g.target} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// SetVIP says to where the next connections go.
func (g *Generator) SetVIP(vip netip.AddrPort) {
	g.shared.vip = vip.Addr().As4()
	g.shared.port = [2]byte{byte(vip.Port() >> 8), byte(vip.Port())}
}

// Rewind begins again with the first client.
func (g *Generator) Rewind() { g.shared.opened, g.shared.made = 0, 0 }

// Opened is how many connections were begun since the last Rewind, Made how many handshakes of them were
// completed. A signal may end a run between two packets of one.
func (g *Generator) Opened() uint64 { return atomic.LoadUint64(&g.shared.opened) }

// Made is described at Opened.
func (g *Generator) Made() uint64 { return atomic.LoadUint64(&g.shared.made) }

// Make makes at least so many connections and returns what one of them took, all three packets of it.
// Call it on a thread in the data plane's namespace, whose loopback must forward. A signal makes the
// kernel begin the run again, so there may be more: Made knows.
func (g *Generator) Make(connections int) (time.Duration, error) {
	verdict, packet, err := g.program.Benchmark(g.frame, 3*connections, nil)
	if err != nil {
		return 0, fmt.Errorf("run generator: %w", err)
	}
	if verdict != verdictRedirect {
		return 0, fmt.Errorf("verdict on the last packet is %d, not to redirect it", verdict)
	}
	return 3 * packet, nil
}

const (
	verdictRedirect = 7 // TC_ACT_REDIRECT
	generatedFrame  = 54
)

// Places in the frame, which begins with Ethernet and has no options.
const (
	atIPID, atTTL, atIPSum                            = 18, 22, 24
	atSource, atDestination                           = 26, 30
	atSourcePort, atDestinationPort, atTCPFlags       = 34, 36, 47
	skbData, skbDataEnd                               = 76, 80 // in struct __sk_buff
	stateOpened, stateMade, stateVIP, statePort       = 0, 8, 16, 20
	stageSYN, stageSYNACK, stageACK             int64 = 0, 1, 2
)

// generatorCode is the program. What comes next stands in the packet itself, in the identification, which
// nobody changes on the way: a run that is cut short and begun again begins with a SYN. The TCP
// checksum is nothing; nobody on the way looks at it.
func generatorCode(state, target int) asm.Instructions {
	const data, counts = asm.R7, asm.R9
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, state),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(counts, asm.R0),
		asm.LoadMem(data, asm.R6, skbData, asm.Word),
		asm.LoadMem(asm.R8, asm.R6, skbDataEnd, asm.Word),
		asm.Mov.Reg(asm.R2, data), asm.Add.Imm(asm.R2, generatedFrame),
		asm.JGT.Reg(asm.R2, asm.R8, "out"),
		asm.StoreImm(data, atTTL, 64, asm.Byte),
		asm.LoadMem(asm.R3, data, atIPID, asm.Half),
		asm.JEq.Imm(asm.R3, int32(stageSYNACK), "turn"),
		asm.JEq.Imm(asm.R3, int32(stageACK), "ack"),

		asm.LoadMem(asm.R4, counts, stateOpened, asm.DWord),
		asm.Mov.Reg(asm.R5, asm.R4), asm.Add.Imm(asm.R5, 1),
		asm.StoreMem(counts, stateOpened, asm.R5, asm.DWord),
		asm.StoreImm(data, atTCPFlags, 0x02, asm.Byte),
		asm.StoreImm(data, atIPID, stageSYNACK, asm.Half),
		asm.Ja.Label("client"),

		asm.LoadMem(asm.R4, counts, stateMade, asm.DWord).WithSymbol("ack"),
		asm.Add.Imm(asm.R4, 1),
		asm.StoreMem(counts, stateMade, asm.R4, asm.DWord),
		asm.LoadMem(asm.R4, counts, stateOpened, asm.DWord),
		asm.Sub.Imm(asm.R4, 1),
		asm.StoreImm(data, atTCPFlags, 0x10, asm.Byte),
		asm.StoreImm(data, atIPID, stageSYN, asm.Half),
	}
	code = append(code, fromClient(data, counts)...)
	code = append(code, turnAround(data)...)
	code = append(code, sumHeader(data)...)
	return append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, target),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("out"),
		asm.Return(),
	)
}

// fromClient writes addresses and ports from client R4 to the VIP.
func fromClient(data, counts asm.Register) asm.Instructions {
	first := GeneratorClients.Addr().As4()
	base := int32(uint32(first[0])<<24 | uint32(first[1])<<16)
	return asm.Instructions{
		asm.Mov.Reg(asm.R3, asm.R4).WithSymbol("client"),
		asm.RSh.Imm(asm.R3, 15), asm.And.Imm(asm.R3, 0xfffff), asm.Or.Imm(asm.R3, base),
		asm.HostTo(asm.BE, asm.R3, asm.Word),
		asm.StoreMem(data, atSource, asm.R3, asm.Word),
		asm.And.Imm(asm.R4, 0x7fff), asm.Add.Imm(asm.R4, 1024),
		asm.HostTo(asm.BE, asm.R4, asm.Half),
		asm.StoreMem(data, atSourcePort, asm.R4, asm.Half),
		asm.LoadMem(asm.R3, counts, stateVIP, asm.Word),
		asm.StoreMem(data, atDestination, asm.R3, asm.Word),
		asm.LoadMem(asm.R3, counts, statePort, asm.Half),
		asm.StoreMem(data, atDestinationPort, asm.R3, asm.Half),
		asm.Ja.Label("send"),
	}
}

// turnAround makes a SYN-ACK of what has become of the SYN.
func turnAround(data asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R1, data, atSource, asm.Word).WithSymbol("turn"),
		asm.LoadMem(asm.R2, data, atDestination, asm.Word),
		asm.StoreMem(data, atSource, asm.R2, asm.Word),
		asm.StoreMem(data, atDestination, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, data, atSourcePort, asm.Half),
		asm.LoadMem(asm.R2, data, atDestinationPort, asm.Half),
		asm.StoreMem(data, atSourcePort, asm.R2, asm.Half),
		asm.StoreMem(data, atDestinationPort, asm.R1, asm.Half),
		asm.StoreImm(data, atTCPFlags, 0x12, asm.Byte),
		asm.StoreImm(data, atIPID, stageACK, asm.Half),
		asm.Ja.Label("send"),
	}
}

// sumHeader writes the checksum of the IP header.
func sumHeader(data asm.Register) asm.Instructions {
	code := asm.Instructions{
		asm.StoreImm(data, atIPSum, 0, asm.Half).WithSymbol("send"),
		asm.LoadMem(asm.R1, data, 14, asm.Word),
	}
	for at := int16(18); at < 34; at += 4 {
		code = append(code, asm.LoadMem(asm.R2, data, at, asm.Word), asm.Add.Reg(asm.R1, asm.R2))
	}
	for range 3 { // 35 bits, 20, 17, 16
		code = append(code, asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 16), asm.And.Imm(asm.R1, 0xffff), asm.Add.Reg(asm.R1, asm.R2))
	}
	return append(code, asm.Xor.Imm(asm.R1, 0xffff), asm.StoreMem(data, atIPSum, asm.R1, asm.Half))
}

// Gauge reads how many connections are in the flow table of a running data plane.
type Gauge struct{ active *ebpf.Map }

// OpenGauge opens the gauge of the data plane pinned below dir.
func OpenGauge(dir string) (*Gauge, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "active"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open connection counts: %w", err)
	}
	return &Gauge{m}, nil
}

// Connections is their number now.
func (g *Gauge) Connections() (n uint64, err error) {
	if err := g.active.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("read connection count: %w", err)
	}
	return n, nil
}

// Close lets go of the map.
func (g *Gauge) Close() error { return g.active.Close() }
