package bpf

import (
	"bytes"
	"net/netip"
	"strings"
	"time"
)

// TraceVerdict is what became of a packet.
type TraceVerdict string

// The verdicts.
const (
	TraceForwarded TraceVerdict = "forwarded" // sent on, rewritten
	TraceAnswered  TraceVerdict = "answered"  // its sender was told something
	TraceDropped   TraceVerdict = "dropped"
	TracePassed    TraceVerdict = "passed" // left to the host as it is
)

// TraceEvent is what the data plane did with one packet. The caller owns it.
type TraceEvent struct {
	Time       time.Time
	CPU        uint32
	Interface  string // it came in on
	Length     uint32 // of the frame, which is more than one packet when Segments is above 1
	Segments   uint32
	SentLength uint32 // of the frame that left; 0: none did
	VLAN       uint16 // of a tag the kernel keeps beside the packet; 0: none

	Protocol uint8
	Src, Dst netip.AddrPort // as it came in; port 0 where there is none
	TCPFlags uint8
	TTL      uint8 // or hop limit

	Reply    bool           // from the endpoint to the client
	Service  uint32         // 0: of none
	Client   netip.AddrPort // of its connection, if it belongs to one; not of an ICMP error that the client's side sends
	Endpoint netip.AddrPort // of its connection, if it belongs to one

	Verdict TraceVerdict
	Reason  string // of a drop, as in Stats.Drops
	Out     string // the interface it left by
	Steps   []TraceStep
	Cut     int // steps that were not kept

	// The first bytes of the frame (at most 192), as it came in and as it left; the latter of
	// packets that were sent only. Where the kernel finds the neighbour the MAC addresses are
	// those it came in with.
	Before, After []byte
}

// TraceStep is one decision: a word for what was decided, and a sentence.
type TraceStep struct {
	Name string
	Text string
}

// Actions of a TC program.
const (
	tcShot     = 2
	tcRedirect = 7
)

// event turns a record into what is told.
func (s *session) event(t *pontoonTrace) TraceEvent {
	p := &t.Packet
	e := TraceEvent{
		Time: s.boot.Add(time.Duration(t.TimeNs)), CPU: t.Cpu, Interface: s.interfaceName(t.Ifindex),
		Length: t.Length, SentLength: t.Sent, Segments: p.Segments, Protocol: p.Key.Proto, TCPFlags: p.TcpFlags, TTL: p.Ttl,
		Src: addrPort(p.Key.Saddr, p.Key.Sport), Dst: addrPort(p.Key.Daddr, p.Key.Dport),
		Before: bytes.Clone(t.Before[:min(int(t.BeforeLen), len(t.Before))]),
		After:  bytes.Clone(t.After[:min(int(t.AfterLen), len(t.After))]),
	}
	if t.VlanTci>>16 != 0 {
		e.VLAN = uint16(t.VlanTci) & 0xfff
	}
	kept := t.Steps[:min(int(t.Count), len(t.Steps))]
	e.Cut = int(t.Count) - len(kept)
	e.verdict(t.Action, kept)
	s.connection(&e, t, kept)
	w := words{session: s, trace: t, event: &e}
	w.all(kept)
	return e
}

func (e *TraceEvent) verdict(action int32, steps []pontoonTraceStep) {
	answered := false
	for _, step := range steps {
		answered = answered || pontoonTraceKind(step.Kind) == pontoonTraceKindSTEP_ANSWER
		if reason, ok := dropReason(step); ok {
			e.Reason = reason
		}
	}
	switch {
	case action == tcShot:
		e.Verdict = TraceDropped
	case action != tcRedirect:
		e.Verdict = TracePassed
	case answered:
		e.Verdict = TraceAnswered
	default:
		e.Verdict = TraceForwarded
	}
	if e.Verdict == TraceForwarded || e.Verdict == TracePassed {
		e.Reason = ""
	}
}

// dropReason is the reason a counted step gives for a drop.
func dropReason(step pontoonTraceStep) (string, bool) {
	if pontoonTraceKind(step.Kind) != pontoonTraceKindSTEP_COUNT {
		return "", false
	}
	return strings.CutPrefix(counterNames[pontoonCounter(step.Number)], "drop/")
}

// connection fills in what the packet belongs to.
func (s *session) connection(e *TraceEvent, t *pontoonTrace, steps []pontoonTraceStep) {
	f := &t.Flow
	for _, step := range steps {
		switch pontoonTraceKind(step.Kind) {
		case pontoonTraceKindSTEP_SERVICE:
			e.Service = uint32(step.Extra)
		case pontoonTraceKindSTEP_FIB:
			e.Out = s.interfaceName(step.Number)
		}
	}
	if f.State == 0 {
		return
	}
	e.Service = uint32(f.Service)
	s.ends(e, f)
	switch e.Verdict {
	case TraceForwarded:
		if e.Out == "" {
			e.Out = s.interfaceName(t.OutIfindex)
		}
	case TraceAnswered:
		e.Out = e.Interface
	default:
		e.Out = ""
	}
}

// ends names client and endpoint. The sender of an ICMP error may be neither: then the one it
// goes to is known, and the endpoint by its number.
func (s *session) ends(e *TraceEvent, f *pontoonFlow) {
	to, icmp := addrPort(f.NewDaddr, f.NewDport), isICMP(e.Protocol)
	e.Reply = f.reply()
	switch {
	case e.Reply && icmp:
		e.Client, e.Endpoint = to, s.endpoint(f.Endpoint)
	case e.Reply:
		e.Client, e.Endpoint = to, e.Src
	case icmp:
		e.Endpoint = to
	default:
		e.Client, e.Endpoint = e.Src, to
	}
}

func isICMP(protocol uint8) bool { return protocol == protoICMP || protocol == protoICMPv6 }
