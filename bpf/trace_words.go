package bpf

import (
	"fmt"
	"net"
	"strings"
)

// words says in sentences what a record says in numbers.
type words struct {
	*session
	trace *pontoonTrace
	event *TraceEvent
	state FlowState // of the connection when it was found
	fib   bool      // the kernel was asked for the way
}

func (w *words) say(name, format string, args ...any) {
	w.event.Steps = append(w.event.Steps, TraceStep{Name: name, Text: fmt.Sprintf(format, args...)})
}

func (w *words) all(steps []pontoonTraceStep) {
	w.parsed()
	for _, step := range steps {
		w.step(step)
	}
	if w.event.Verdict == TraceForwarded && !w.fib && len(w.event.After) >= 12 {
		w.say("route", "by the cached next hop %s on %s", net.HardwareAddr(w.event.After[:6]), w.event.Out)
	}
}

// parsed says what the parser made of the packet.
func (w *words) parsed() {
	p := &w.trace.Packet
	family := "IPv4"
	if p.Flags&uint8(pontoonPacketFlagPACKET_F_V6) != 0 {
		family = "IPv6"
	}
	text := []string{family, protocolName(p.Key.Proto)}
	if p.Key.Proto == protoTCP || p.Key.Proto == protoSCTP {
		text = append(text, "flags "+TCPFlagNames(p.TcpFlags))
	}
	text = append(text, fmt.Sprintf("TTL %d", p.Ttl))
	if p.Flags&uint8(pontoonPacketFlagPACKET_F_OPTIONS) != 0 {
		text = append(text, "options or extension headers")
	}
	switch {
	case p.Flags&uint8(pontoonPacketFlagPACKET_F_FIRST) != 0:
		text = append(text, "first fragment")
	case p.Flags&uint8(pontoonPacketFlagPACKET_F_LATER|pontoonPacketFlagPACKET_F_BODY) != 0:
		text = append(text, "later fragment")
	}
	if p.Flags&uint8(pontoonPacketFlagPACKET_F_MALFORMED) != 0 {
		text = append(text, "malformed: "+malformedWhy(w.event.Before, int(p.L3Off), p))
	}
	w.say("parse", "%s", strings.Join(text, ", "))
}

func (w *words) step(step pontoonTraceStep) {
	switch pontoonTraceKind(step.Kind) {
	case pontoonTraceKindSTEP_FLOW:
		w.found("in the flow table", step)
	case pontoonTraceKindSTEP_HALF_OPEN:
		w.found("half-open", step)
	case pontoonTraceKindSTEP_CREATED:
		w.state = FlowState(step.Number)
		w.say("flow", "new half-open connection to %s", w.endpointName(step.Extra))
	case pontoonTraceKindSTEP_SEND:
		w.send(step)
	case pontoonTraceKindSTEP_VIP:
		if step.Number != 0 {
			w.say("vip", "no connection known; %s is a VIP", w.event.Dst.Addr())
		} else {
			w.say("vip", "no connection known, and %s is no VIP: not for the load balancer", w.event.Dst.Addr())
		}
	case pontoonTraceKindSTEP_SERVICE:
		w.say("service", "%s: %s, %s, selection table of %d", w.serviceName(uint32(step.Extra)),
			Mode(step.Number), Algorithm(step.Number>>8), step.Number>>16)
	case pontoonTraceKindSTEP_AFFINITY:
		if step.Extra == 0 {
			w.say("affinity", "the client has no endpoint of this service yet")
		} else {
			w.say("affinity", "the client stays with %s", w.endpointName(step.Extra))
		}
	case pontoonTraceKindSTEP_SELECTED:
		w.say("select", "place %d of the table is %s", step.Number, w.endpointName(step.Extra))
	case pontoonTraceKindSTEP_RETRY:
		w.say("select", "%s cannot take the connection: no free tuple towards it", w.endpointName(step.Extra))
	case pontoonTraceKindSTEP_PORT:
		w.port(step)
	case pontoonTraceKindSTEP_FIB:
		w.fib = true
		w.route(step)
	case pontoonTraceKindSTEP_ANSWER:
		w.answer(step)
	case pontoonTraceKindSTEP_COUNT:
		w.counted(pontoonCounter(step.Number))
	}
}

// found tells of the entry a packet hit.
func (w *words) found(where string, step pontoonTraceStep) {
	state, flags, owner := FlowState(step.Number), uint8(step.Number>>8), uint8(step.Number>>16)
	w.state = state
	half := "to the endpoint"
	if flags&flagReply != 0 {
		half = "to the client"
	}
	text := fmt.Sprintf("%s, %s, of %s, direction %s", where, state, w.serviceName(w.event.Service), half)
	if flags&flagReplica != 0 {
		text += ", a copy of a connection of " + w.nodeName(owner)
	}
	if flags&uint8(pontoonFlowFlagFLOW_F_DOOMED) != 0 {
		text += ", doomed: its endpoint is gone"
	}
	w.say("flow", "%s", text)
}

// send tells of the entry by which the packet is sent, which shows what the packet changed.
func (w *words) send(step pontoonTraceStep) {
	f := &w.trace.Flow
	if now := FlowState(step.Number); w.state != 0 && now != w.state {
		w.say("state", "%s, was %s", now, w.state)
	}
	mode := Mode(step.Number >> 24)
	if isICMP(w.event.Protocol) {
		w.say("flow", "an error about a packet of %s, %s: goes to %s", w.serviceName(uint32(f.Service)), mode, addrPort(f.NewDaddr, f.NewDport))
		return
	}
	if mode >= ModeDSR {
		w.say("rewrite", "%s: addresses and ports stay; endpoint %s", mode, fromAddr(f.NewDaddr))
		return
	}
	w.say("rewrite", "%s: from %s to %s", mode, addrPort(f.NewSaddr, f.NewSport), addrPort(f.NewDaddr, f.NewDport))
}

func (w *words) port(step pontoonTraceStep) {
	switch {
	case step.Number == 0:
		w.say("port", "source port %d claimed", step.Extra)
	case step.Number >= 32:
		w.say("port", "source port %d, of a closed connection, for want of a free one", step.Extra)
	default:
		w.say("port", "source port %d claimed after %d that were in use", step.Extra, step.Number)
	}
}

// Answers of the kernel's route lookup (linux/bpf.h).
var fibAnswers = [...]string{
	"known", "blackhole", "unreachable", "prohibited", "not a forwarded destination", "forwarding is switched off",
	"needs a tunnel", "neighbour not known", "needs fragmentation", "no source address",
}

func (w *words) route(step pontoonTraceStep) {
	const known, noNeighbour = 0, 7
	name := w.interfaceName(step.Number)
	switch rc := int(int16(step.Extra)); {
	case rc == known:
		w.say("route", "the kernel says by %s, neighbour known; kept for the next packets", name)
	case rc == noNeighbour:
		w.say("route", "the kernel says by %s and looks for the neighbour", name)
	case rc > 0 && rc < len(fibAnswers):
		w.say("route", "the kernel says %s", fibAnswers[rc])
	default:
		w.say("route", "the kernel gives no answer (%d)", rc)
	}
}

func (w *words) answer(step pontoonTraceStep) {
	switch pontoonAnswer(step.Extra) {
	case pontoonAnswerANSWER_REFUSE:
		w.say("answer", "nobody is there: the sender is told")
	case pontoonAnswerANSWER_TOO_BIG:
		w.say("answer", "too big: the sender is told to send at most %d bytes", step.Number)
	case pontoonAnswerANSWER_ECHO:
		w.say("answer", "a neighbour's probe: it goes back")
	case pontoonAnswerANSWER_EXPIRED:
		w.say("answer", "lived too long: the sender is told")
	default:
		w.say("answer", "the sender is told something (%d, %d)", step.Extra, step.Number)
	}
}

// counted tells of what is counted, unless another step has said it already.
func (w *words) counted(counter pontoonCounter) {
	text, known := counterWords[counter]
	name, reason := strings.CutPrefix(counterNames[counter], "drop/")
	switch {
	case known && text == "":
	case reason && w.event.Verdict != TraceDropped:
		w.say("note", "%s (%s)", orText(text, name), name)
	case reason:
		w.say("drop", "%s (%s)", orText(text, name), name)
	case known:
		w.say("note", "%s", text)
	default:
		w.say("note", "counted as %s", name)
	}
}

func orText(text, name string) string {
	if text == "" {
		return strings.ReplaceAll(name, "_", " ")
	}
	return text
}

func (w *words) serviceName(id uint32) string {
	if w.names.Service != nil {
		if name := w.names.Service(id); name != "" {
			return "service " + name
		}
	}
	return fmt.Sprintf("service %d", id)
}

func (w *words) nodeName(slot uint8) string {
	if w.names.Node != nil {
		if name := w.names.Node(slot); name != "" {
			return name
		}
	}
	return fmt.Sprintf("the node of slot %d", slot)
}

func (w *words) endpointName(id uint16) string {
	if e := w.endpoint(id); e.IsValid() {
		return "endpoint " + e.String()
	}
	return fmt.Sprintf("endpoint %d", id)
}

func protocolName(p uint8) string {
	switch p {
	case protoTCP:
		return "TCP"
	case protoUDP:
		return "UDP"
	case protoSCTP:
		return "SCTP"
	case protoICMP:
		return "ICMP"
	case protoICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprintf("protocol %d", p)
}

const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// TCPFlagNames spells TCP flags, lowest bit last as on the wire: "SYN ACK"; "none".
func TCPFlagNames(flags uint8) string {
	var set []string
	for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if flags&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	if len(set) == 0 {
		return "none"
	}
	return strings.Join(set, " ")
}
