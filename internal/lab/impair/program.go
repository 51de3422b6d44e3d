package impair

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// direction is one of the two programs of a port.
type direction int

const (
	fromHost direction = iota // ingress of the segment's end
	toHost                    // egress of it
)

// Marks that this package puts on packets of its own. Both are taken off before
// anybody else sees the frame.
const (
	markSent     = 0x70740001 // to the host: has been through the rules
	markReceived = 0x70740002 // from the host: to be taken in at the port as if it came by the cable
)

// Verdicts of TCX programs (include/uapi/linux/bpf.h).
const (
	tcxNext = -1
	tcxDrop = 2
)

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
const (
	skbLen     = 0
	skbMark    = 8
	skbGSOSegs = 164
	skbGSOSize = 176
)

// Places on the program's stack, below the frame pointer.
const (
	stackEth   = -16 // Ethernet's header: destination, source, type
	stackIP    = -56 // IP's header, up to 40 bytes
	stackPorts = -64 // source and destination port
	stackMeta  = -96 // what goes to user space with a late frame: struct meta
	stackKey   = -100
)

// meta goes before a late frame's bytes. Its layout is that of the stores in
// emitDelay.
type meta struct {
	Delay, Jitter uint64 // ns
	Len           uint32 // of the frame
	GSOSize       uint32
	Direction     uint32
	_             uint32
}

const metaSize = 32

// maxLate is the longest frame that fits a record of perf's ring.
const maxLate = 60000

const (
	ethLen, etherIPv4, etherIPv6 = 14, 0x0800, 0x86DD

	regCtx, regType, regProto, regDSCP = asm.R6, asm.R7, asm.R8, asm.R9
)

// compile turns one direction's rules into a program. ring takes late frames,
// counts has four values for each rule.
func compile(d direction, ifindex int, rules []Rule, ring, counts *ebpf.Map) *ebpf.ProgramSpec {
	c := &compiler{dir: d, ifindex: int32(ifindex), ring: ring, counts: counts}
	c.ownFrames()
	c.parse()
	for i, r := range rules {
		c.rule(i, r)
	}
	c.emit(asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"), asm.Return())
	attach := ebpf.AttachTCXIngress
	if d == toHost {
		attach = ebpf.AttachTCXEgress
	}
	return &ebpf.ProgramSpec{
		Name: "pt_impair", Type: ebpf.SchedCLS, AttachType: attach, Instructions: c.ins, License: "GPL",
	}
}

type compiler struct {
	dir          direction
	ifindex      int32
	ring, counts *ebpf.Map
	ins          asm.Instructions
	label        string // of the next instruction
}

func (c *compiler) emit(ins ...asm.Instruction) {
	if c.label != "" {
		ins[0] = ins[0].WithSymbol(c.label)
		c.label = ""
	}
	c.ins = append(c.ins, ins...)
}

// ownFrames lets through what this package sends: a late frame, and a double.
func (c *compiler) ownFrames() {
	c.emit(
		asm.Mov.Reg(regCtx, asm.R1),
		asm.LoadMem(asm.R0, regCtx, skbMark, asm.Word),
	)
	if c.dir == fromHost {
		c.emit(asm.JNE.Imm(asm.R0, markReceived, "parse"))
		c.setMark(0)
		c.emit(asm.Ja.Label("pass"))
		return
	}
	c.emit(asm.JEq.Imm(asm.R0, markSent, "pass"), asm.JNE.Imm(asm.R0, markReceived, "parse"))
	c.emit(
		asm.Mov.Imm(asm.R1, c.ifindex),
		asm.Mov.Imm(asm.R2, 1), // BPF_F_INGRESS
		asm.FnRedirect.Call(),
		asm.Return(),
	)
}

func (c *compiler) setMark(mark int32) {
	c.emit(asm.Mov.Imm(asm.R1, mark), asm.StoreMem(regCtx, skbMark, asm.R1, asm.Word))
}

// load copies bytes of the frame to the stack; offset is in R2. What is not
// there sends the program to the label.
func (c *compiler) load(to int16, size int32, missing string) {
	c.emit(
		asm.Mov.Reg(asm.R1, regCtx),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, int32(to)),
		asm.Mov.Imm(asm.R4, size),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, missing),
	)
}

// parse fills regType, regProto, regDSCP and the ports; what is not IP has
// neither of the latter three.
func (c *compiler) parse() {
	c.label = "parse"
	c.emit(
		asm.Mov.Imm(regProto, 0),
		asm.Mov.Imm(regDSCP, math.MaxUint8), // no code point is that
		asm.StoreImm(asm.RFP, stackPorts, 0, asm.Word),
		asm.Mov.Imm(asm.R2, 0),
	)
	c.load(stackEth, ethLen, "pass")
	c.emit(
		asm.LoadMem(regType, asm.RFP, stackEth+12, asm.Half),
		asm.HostTo(asm.BE, regType, asm.Half),
		asm.JEq.Imm(regType, etherIPv6, "ipv6"),
		asm.JNE.Imm(regType, etherIPv4, "rules"),
		asm.Mov.Imm(asm.R2, ethLen),
	)
	c.load(stackIP, 20, "rules")
	c.emit(
		asm.LoadMem(regDSCP, asm.RFP, stackIP+1, asm.Byte),
		asm.RSh.Imm(regDSCP, 2),
		asm.LoadMem(regProto, asm.RFP, stackIP+9, asm.Byte),
		// A later fragment has no ports.
		asm.LoadMem(asm.R1, asm.RFP, stackIP+6, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, 0x1fff),
		asm.JNE.Imm(asm.R1, 0, "rules"),
		asm.LoadMem(asm.R2, asm.RFP, stackIP, asm.Byte),
		asm.And.Imm(asm.R2, 0xf),
		asm.LSh.Imm(asm.R2, 2),
		asm.Add.Imm(asm.R2, ethLen),
		asm.Ja.Label("ports"),
	)
	c.label = "ipv6"
	c.emit(asm.Mov.Imm(asm.R2, ethLen))
	c.load(stackIP, 40, "rules")
	c.emit(
		asm.LoadMem(regDSCP, asm.RFP, stackIP, asm.Half),
		asm.HostTo(asm.BE, regDSCP, asm.Half),
		asm.RSh.Imm(regDSCP, 6), // version, class, flow label: 4, 8 and 4 bits here
		asm.And.Imm(regDSCP, 0x3f),
		asm.LoadMem(regProto, asm.RFP, stackIP+6, asm.Byte),
		asm.Mov.Imm(asm.R2, ethLen+40),
	)
	c.label = "ports"
	c.load(stackPorts, 4, "rules")
	c.label = "rules"
	c.emit(asm.Mov.Imm(asm.R0, 0))
}

// rule matches one rule and does what it says.
func (c *compiler) rule(i int, r Rule) {
	next := fmt.Sprintf("after%d", i)
	c.match(i, r, next)
	c.count(4 * i)
	if r.Drop > 0 {
		keep := fmt.Sprintf("keep%d", i)
		c.unless(r.Drop, keep)
		c.count(4*i + 1)
		c.emit(asm.Mov.Imm(asm.R0, tcxDrop), asm.Return())
		c.label = keep
	}
	if r.Duplicate > 0 {
		single := fmt.Sprintf("single%d", i)
		c.unless(r.Duplicate, single)
		c.count(4*i + 2)
		c.duplicate()
		c.label = single
	}
	if r.Delay > 0 || r.Jitter > 0 {
		c.count(4*i + 3)
		c.delay(r)
	} else {
		c.emit(asm.Ja.Label("pass"))
	}
	c.label = next
	c.emit(asm.Mov.Imm(asm.R0, 0)) // something for the label
}

// match goes to next when the frame is none of the rule's.
func (c *compiler) match(i int, r Rule, next string) {
	// Never true: a way to the next rule, which the verifier wants, also where this
	// one matches everything.
	c.emit(asm.JGT.Imm(regType, math.MaxUint16, next))
	if r.EtherType != 0 {
		c.emit(asm.JNE.Imm(regType, int32(r.EtherType), next))
	}
	if r.Protocol != 0 {
		c.emit(asm.JNE.Imm(regProto, int32(r.Protocol), next))
	}
	if len(r.DSCP) > 0 {
		ok := fmt.Sprintf("dscp%d", i)
		for _, d := range r.DSCP {
			c.emit(asm.JEq.Imm(regDSCP, int32(d), ok))
		}
		c.emit(asm.Ja.Label(next))
		c.label = ok
	}
	if r.Port != 0 {
		ok := fmt.Sprintf("port%d", i)
		for _, at := range []int16{stackPorts, stackPorts + 2} {
			c.emit(
				asm.LoadMem(asm.R1, asm.RFP, at, asm.Half),
				asm.HostTo(asm.BE, asm.R1, asm.Half),
				asm.JEq.Imm(asm.R1, int32(r.Port), ok),
			)
		}
		c.emit(asm.Ja.Label(next))
		c.label = ok
	}
	if r.Peer == nil {
		return
	}
	at := int16(stackEth) // the destination
	if c.dir == toHost {
		at += 6 // the source
	}
	for k := int16(0); k < 6; k += 2 {
		c.emit(
			asm.LoadMem(asm.R1, asm.RFP, at+k, asm.Half),
			asm.HostTo(asm.BE, asm.R1, asm.Half),
			asm.JNE.Imm(asm.R1, int32(binary.BigEndian.Uint16(r.Peer[k:])), next),
		)
	}
}

// count adds one to a counter.
func (c *compiler) count(key int) {
	skip := fmt.Sprintf("counted%d", key)
	c.emit(
		asm.StoreImm(asm.RFP, stackKey, int64(key), asm.Word),
		asm.LoadMapPtr(asm.R1, c.counts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, skip),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
	)
	c.label = skip
	c.emit(asm.Mov.Imm(asm.R0, 0))
}

// unless goes to the label except with the given probability.
func (c *compiler) unless(probability float64, label string) {
	c.emit(
		asm.FnGetPrandomU32.Call(),
		asm.LSh.Imm(asm.R0, 32), // what is above the 32 bits is not said to be empty
		asm.RSh.Imm(asm.R0, 33), // 31 bits: an immediate has a sign
		asm.JGT.Imm(asm.R0, int32(probability*math.MaxInt32), label),
	)
}

// duplicate sends a copy the way the frame goes.
func (c *compiler) duplicate() {
	mark, flags := int32(markSent), int32(0)
	if c.dir == fromHost {
		mark, flags = markReceived, 1 // BPF_F_INGRESS
	}
	c.setMark(mark)
	c.emit(
		asm.Mov.Reg(asm.R1, regCtx),
		asm.Mov.Imm(asm.R2, c.ifindex),
		asm.Mov.Imm(asm.R3, flags),
		asm.FnCloneRedirect.Call(),
	)
	c.setMark(0)
}

// delay hands the frame to user space and drops it here.
func (c *compiler) delay(r Rule) {
	c.emit(
		asm.LoadImm(asm.R1, int64(r.Delay), asm.DWord),
		asm.StoreMem(asm.RFP, stackMeta, asm.R1, asm.DWord),
		asm.LoadImm(asm.R1, int64(r.Jitter), asm.DWord),
		asm.StoreMem(asm.RFP, stackMeta+8, asm.R1, asm.DWord),
		asm.LoadMem(asm.R3, regCtx, skbLen, asm.Word),
		asm.StoreMem(asm.RFP, stackMeta+16, asm.R3, asm.Word),
		asm.LoadMem(asm.R1, regCtx, skbGSOSize, asm.Word),
		asm.StoreMem(asm.RFP, stackMeta+20, asm.R1, asm.Word),
		asm.StoreImm(asm.RFP, stackMeta+24, int64(c.dir), asm.Word),
		asm.StoreImm(asm.RFP, stackMeta+28, 0, asm.Word),
	)
	lost := fmt.Sprintf("lost%d", len(c.ins))
	c.emit(
		asm.JGT.Imm(asm.R3, maxLate, lost),
		asm.LSh.Imm(asm.R3, 32), // so many bytes of the frame go along
		asm.LoadImm(asm.R1, math.MaxUint32, asm.DWord),
		asm.Or.Reg(asm.R3, asm.R1), // to the ring of this processor
		asm.Mov.Reg(asm.R1, regCtx),
		asm.LoadMapPtr(asm.R2, c.ring.FD()),
		asm.Mov.Reg(asm.R4, asm.RFP),
		asm.Add.Imm(asm.R4, stackMeta),
		asm.Mov.Imm(asm.R5, metaSize),
		asm.FnPerfEventOutput.Call(),
	)
	c.label = lost
	c.emit(asm.Mov.Imm(asm.R0, tcxDrop), asm.Return())
}
