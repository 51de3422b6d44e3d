package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/web"
)

// Trace implements web.Backend: what this node's data plane does with packets.
func (d *daemon) Trace(ctx context.Context, f web.TraceFilter, started func(), emit func(web.TraceEvent) error) (web.TraceSummary, error) {
	m, err := d.current()
	if err != nil {
		return web.TraceSummary{}, err
	}
	if m.dp == nil {
		return web.TraceSummary{}, fmt.Errorf("%s is a witness and forwards nothing: ask a load balancer: %w", m.cfg.Name, fsm.ErrNotEligible)
	}
	filter := bpf.TraceFilter{Client: f.Client, ClientPort: f.ClientPort}
	if f.Service != "" {
		svc, ok := m.store.State().Service(f.Service)
		if !ok {
			return web.TraceSummary{}, fmt.Errorf("service %q: %w", f.Service, fsm.ErrNotFound)
		}
		filter.Service = svc.ID
	}
	names := bpf.TraceNames{Service: m.serviceOf, Node: m.nodeOf}
	m.logger.Info("tracing packets", "client", f.Client, "service", f.Service)
	sum, err := m.dp.Trace(ctx, filter, names, started, func(e bpf.TraceEvent) error {
		return emit(m.webTrace(e))
	})
	m.logger.Info("tracing ended", "packets", sum.Packets, "lost", sum.Lost)
	if errors.Is(err, bpf.ErrTraceBusy) {
		err = web.ErrTraceBusy
	}
	return web.TraceSummary{Packets: sum.Packets, Lost: sum.Lost}, err
}

// serviceOf is the name of the service of a replicated id; empty when there is none.
func (m *member) serviceOf(id uint32) string {
	for _, svc := range m.store.State().Services() {
		if svc.ID == id {
			return svc.Name
		}
	}
	return ""
}

// nodeOf is the name of the load balancer of a slot; empty when there is none.
func (m *member) nodeOf(slot uint8) string {
	for _, n := range m.store.State().Nodes() {
		if n.Role == fsm.RoleLB && n.Slot == slot {
			return string(n.Name)
		}
	}
	return ""
}

func (m *member) webTrace(e bpf.TraceEvent) web.TraceEvent {
	out := web.TraceEvent{
		Time: e.Time.UTC(), Node: fsm.NodeID(m.cfg.Name), Interface: e.Interface, Protocol: tracedProtocol(e.Protocol),
		Source: e.Src, Destination: e.Dst, Length: e.Length, SentLength: e.SentLength, VLAN: e.VLAN, Client: e.Client, Endpoint: e.Endpoint,
		Verdict: string(e.Verdict), Reason: e.Reason, Out: e.Out, Cut: e.Cut, Before: e.Before, After: e.After,
		Steps: make([]web.TraceStep, len(e.Steps)),
	}
	for i, s := range e.Steps {
		out.Steps[i] = web.TraceStep{Decision: s.Name, Text: s.Text}
	}
	if e.Protocol == 6 {
		out.Flags = bpf.TCPFlagNames(e.TCPFlags)
	}
	if e.Segments > 1 {
		out.Segments = e.Segments
	}
	if e.Service != 0 {
		out.Service = m.serviceOf(e.Service)
	}
	if e.Endpoint.IsValid() {
		out.Direction = "forward"
		if e.Reply {
			out.Direction = "reply"
		}
	}
	return out
}

// tracedProtocol names an IP protocol as the configuration and tcpdump do.
func tracedProtocol(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return string(fsm.TCP)
	case 17:
		return string(fsm.UDP)
	case 58:
		return "icmpv6"
	case 132:
		return string(fsm.SCTP)
	}
	return strconv.Itoa(int(p))
}
