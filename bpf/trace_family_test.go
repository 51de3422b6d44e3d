package bpf

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"pontoon/bpf/bpftest"
)

// tell sends a packet of one side through the traced programs.
func (d *duo) tell(tr *tracer, fromClient bool, f bpftest.Frame) TraceEvent {
	d.tb.Helper()
	from := d.side(fromClient, &f)
	e, _, _ := tr.send(from, f.Bytes())
	return e
}

func TestTraceTellsOfErrorsAboutAConnection(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			d := newDuo(t, f, nil)
			d.serve(ModeFullNAT, protoTCP)
			seen := d.open(protoTCP, d.clientPort())
			tr := d.trace(TraceFilter{Client: netip.PrefixFrom(d.client, d.client.BitLen()), Service: 7})
			stray := seen
			stray.src = netip.AddrPortFrom(seen.src.Addr(), 9)
			for _, row := range []struct {
				about ports
				told  bool
			}{{stray, false}, {seen, true}} {
				in := d.about(routers[f.name][false], errorKinds[f.name]["port"], row.about.frame(protoTCP, bpftest.ACK, nil), 8)
				from := d.side(false, &in)
				if tr.silent(from, in.Bytes()); !row.told {
					continue
				}
				e := tr.next()
				if e.Src.Addr() != routers[f.name][false] || e.Verdict != TraceForwarded || e.Client != d.clientPort() || e.Endpoint != d.endpoint1 {
					t.Errorf("%+v", e)
				}
				if !strings.Contains(text(e, "flow"), "error about a packet of service web") || !strings.Contains(text(e, "note"), "ICMP error") {
					t.Errorf("%+v", e.Steps)
				}
			}
		})
	}
}

func TestTraceTellsOfEveryFamily(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			d := newDuo(t, f, nil)
			d.serve(ModeFullNAT, protoTCP)
			tr := d.trace(TraceFilter{Client: netip.PrefixFrom(d.client, d.client.BitLen())})
			asked := ports{d.clientPort(), d.vipPort()}
			e := d.tell(tr, true, asked.frame(protoTCP, bpftest.SYN, nil))
			expectSteps(t, e, "parse", "vip", "service", "select", "port", "flow", "rewrite", "route")
			if e.Src != d.clientPort() || e.Endpoint != d.endpoint1 || !strings.Contains(text(e, "parse"), f.name) {
				t.Errorf("%+v", e)
			}
			expired := asked.frame(protoTCP, bpftest.SYN, nil)
			expired.TTL = 1
			e = d.tell(tr, true, expired)
			if e.Verdict != TraceAnswered || !strings.Contains(text(e, "answer"), "lived too long") || bytes.Equal(e.After, e.Before) {
				t.Errorf("%s: %+v", e.Verdict, e.Steps)
			}
			frames := fragmented(asked.frame(protoTCP, bpftest.SYN, bytes.Repeat([]byte{1}, 64)), 48)
			e = d.tell(tr, true, frames[0])
			if !strings.Contains(text(e, "parse"), "first fragment") || e.Verdict != TraceForwarded {
				t.Errorf("%s: %+v", e.Verdict, e.Steps)
			}
			e = d.tell(tr, true, frames[1])
			if !strings.Contains(text(e, "parse"), "later fragment") || !strings.Contains(text(e, "note"), "follows the first") {
				t.Errorf("%s: %+v", e.Verdict, e.Steps)
			}
		})
	}
}

// fragmented cuts a frame in two.
func fragmented(f bpftest.Frame, at int) [2]bpftest.Frame {
	first, second := f, f
	first.ID, second.ID = 77, 77
	first.L4, first.More = f.L4[:at], true
	second.L4, second.Offset = f.L4[at:], at
	return [2]bpftest.Frame{first, second}
}
