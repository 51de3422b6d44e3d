package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
)

// probeFlags are the settings of a service about the health of its endpoints.
type probeFlags struct {
	typ        *choice
	port       uint16
	interval   time.Duration
	timeout    time.Duration
	rise, fall uint8
	source     addressFlag
	throughVIP bool

	method, path, host, expect string
	body, send                 string
	tls, verify                bool
	serverName, grpcService    string

	onDown    *choice
	allDown   *choice
	slowStart time.Duration
}

func (f *probeFlags) addTo(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.typ = newChoice("", string(fsm.ProbeTCP), string(fsm.ProbeHTTP), string(fsm.ProbeHTTPS), string(fsm.ProbeICMP),
		string(fsm.ProbeUDP), string(fsm.ProbeSCTP), string(fsm.ProbeGRPC), string(fsm.ProbeNone))
	f.typ.addTo(cmd, "probe", "", "how endpoints are asked whether they work (default tcp or sctp as the protocol, none for udp)")
	fs.Uint16Var(&f.port, "probe-port", 0, "the port that is probed; 0 is the endpoint's own (default 0)")
	fs.DurationVar(&f.interval, "probe-interval", 0, "between two probes of an endpoint, 100ms to 1h (default 2s)")
	fs.DurationVar(&f.timeout, "probe-timeout", 0, "of one probe, 10ms to ten intervals (default 1s)")
	fs.Uint8Var(&f.rise, "probe-rise", 0, "so many good probes in a row make an endpoint up, 1 to 100 (default 2)")
	fs.Uint8Var(&f.fall, "probe-fall", 0, "so many bad probes in a row make an endpoint down, 1 to 100 (default 3)")
	fs.Var(&f.source, "probe-source", "the address of the probing node that probes come from; 0.0.0.0 is the kernel's choice (default 0.0.0.0)")
	fs.BoolVar(&f.throughVIP, "probe-through-vip", false, "of mode dsr, with tcp, udp or icmp: probe the VIP on the endpoint, the way its packets go (default false)")
	fs.StringVar(&f.method, "probe-method", "", "of http and https (default GET)")
	fs.StringVar(&f.path, "probe-path", "", "of http and https (default /)")
	fs.StringVar(&f.host, "probe-host", "", "of http and https, the Host header (default: the endpoint's address)")
	fs.StringVar(&f.expect, "probe-expect", "", "of http and https: the good status codes, like 200,204,300-399 (default 200-399)")
	fs.StringVar(&f.body, "probe-body", "", "of http, https and udp: what has to be in the answer (default: anything)")
	fs.StringVar(&f.send, "probe-send", "", "of udp: what is sent, with escapes like \\x00 (default: nothing, in a datagram)")
	fs.BoolVar(&f.tls, "probe-tls", false, "of grpc: by TLS (default false)")
	fs.BoolVar(&f.verify, "probe-tls-verify", false, "by TLS: the certificate has to be valid (default false)")
	fs.StringVar(&f.serverName, "probe-server-name", "", "by TLS: the name to ask for (default: that of the host, or the endpoint's address)")
	fs.StringVar(&f.grpcService, "probe-grpc-service", "", "of grpc: the service to ask about (default: the server as a whole)")
	f.onDown = newChoice("", string(fsm.DownKeep), string(fsm.DownReset), string(fsm.DownMove))
	f.onDown.addTo(cmd, "on-down", "", "what the flows of an endpoint get that is found down; move: their next packet chooses anew (default keep)")
	f.allDown = newChoice("", string(fsm.AllDownOpen), string(fsm.AllDownClosed))
	f.allDown.addTo(cmd, "all-down", "", "what new flows get when all endpoints are down; open: they go to all as if they were up (default open)")
	fs.DurationVar(&f.slowStart, "slow-start", 0, "over how long the weight of an endpoint grows that is up again, 1s to 1h; 0s is at once (default 0s)")
}

// checkZeros refuses a zero where it would be read as "the default".
func (f *probeFlags) checkZeros(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case changed("probe-interval") && f.interval == 0:
		return usagef("--probe-interval 0s: want 100ms to 1h; --probe none switches it off")
	case changed("probe-timeout") && f.timeout == 0:
		return usagef("--probe-timeout 0s: want 10ms to ten intervals")
	case changed("probe-rise") && f.rise == 0:
		return usagef("--probe-rise 0: want 1 to %d", fsm.MaxProbeCount)
	case changed("probe-fall") && f.fall == 0:
		return usagef("--probe-fall 0: want 1 to %d", fsm.MaxProbeCount)
	}
	return nil
}

// merge puts what was given into a service. Another type begins anew with what
// belongs to it: how often and how long stays, unless nothing is asked any more.
func (f *probeFlags) merge(cmd *cobra.Command, s *fsm.Service) {
	p := s.Probe
	if old := p.Type; set(&p.Type, f.typ) && p.Type != old {
		p = retyped(p)
	}
	changed := cmd.Flags().Changed
	put(changed("probe-port"), &p.Port, f.port)
	put(changed("probe-interval"), &p.Interval, fsm.Duration(f.interval))
	put(changed("probe-timeout"), &p.Timeout, fsm.Duration(f.timeout))
	put(changed("probe-rise"), &p.Rise, f.rise)
	put(changed("probe-fall"), &p.Fall, f.fall)
	if put(changed("probe-source"), &p.Source, f.source.addr); p.Source.IsUnspecified() {
		p.Source = netip.Addr{}
	}
	put(changed("probe-through-vip"), &p.ThroughVIP, f.throughVIP)
	put(changed("probe-method"), &p.Method, f.method)
	put(changed("probe-path"), &p.Path, f.path)
	put(changed("probe-host"), &p.Host, f.host)
	put(changed("probe-expect"), &p.Expect, f.expect)
	put(changed("probe-body"), &p.Body, f.body)
	put(changed("probe-send"), &p.Send, f.send)
	put(changed("probe-tls"), &p.TLS, f.tls)
	put(changed("probe-tls-verify"), &p.TLSVerify, f.verify)
	put(changed("probe-server-name"), &p.ServerName, f.serverName)
	put(changed("probe-grpc-service"), &p.GRPCService, f.grpcService)
	s.Probe = p
	set(&s.OnDown, f.onDown)
	set(&s.AllDown, f.allDown)
	put(changed("slow-start"), &s.SlowStart, fsm.Duration(f.slowStart))
}

// retyped is what stays of a probe that has become one of another type.
func retyped(p fsm.Probe) fsm.Probe {
	if !p.Active() {
		return fsm.Probe{Type: p.Type}
	}
	out := fsm.Probe{Type: p.Type, Interval: p.Interval, Timeout: p.Timeout, Rise: p.Rise, Fall: p.Fall, Source: p.Source}
	if p.Type == fsm.ProbeHTTP || p.Type == fsm.ProbeHTTPS { // from one to the other
		out.Port, out.Method, out.Path, out.Host, out.Expect, out.Body = p.Port, p.Method, p.Path, p.Host, p.Expect, p.Body
	}
	return out
}

// probeOf is "http each 2s, for 1s: GET /up wants 200-399; up after 2, down after 3".
func probeOf(p fsm.Probe) string {
	if !p.Active() {
		return "none: endpoints count as up"
	}
	text := fmt.Sprintf("%s each %s, for %s", p.Type, p.Interval, p.Timeout)
	if p.Port != 0 {
		text += fmt.Sprintf(", on port %d", p.Port)
	}
	if p.ThroughVIP {
		text += ", through the VIP"
	}
	if p.Source.IsValid() {
		text += fmt.Sprintf(", from %s", p.Source)
	}
	return text + probeAsks(p) + fmt.Sprintf("; up after %d, down after %d", p.Rise, p.Fall)
}

// probeAsks is what goes with the type.
func probeAsks(p fsm.Probe) string {
	text := ""
	switch p.Type {
	case fsm.ProbeHTTP, fsm.ProbeHTTPS:
		text = fmt.Sprintf(": %s %s", p.Method, p.Path)
		if p.Host != "" {
			text += " of " + p.Host
		}
		text += " wants " + p.Expect
	case fsm.ProbeGRPC:
		if p.TLS {
			text = " by TLS"
		}
		if p.GRPCService != "" {
			text += ": " + p.GRPCService
		}
	case fsm.ProbeUDP:
		if p.Send != "" {
			text = fmt.Sprintf(": sends \"%s\"", p.Send)
		}
	}
	if p.Body != "" {
		text += fmt.Sprintf(" with %q", p.Body)
	}
	if p.ServerName != "" {
		text += ", asking for " + p.ServerName
	}
	if p.TLSVerify {
		text += ", with a valid certificate"
	}
	return text
}
