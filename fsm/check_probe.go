package fsm

import (
	"strings"
	"unicode/utf8"
)

// checkProbe validates the probe of a service in its normal form. The problems
// stand below "probe".
func checkProbe(chk *checker, svc Service) {
	var own checker
	p := svc.Probe
	oneOf(&own, "type", p.Type, ProbeTCP, ProbeHTTP, ProbeHTTPS, ProbeICMP, ProbeUDP, ProbeSCTP, ProbeGRPC, ProbeNone)
	checkProbeFit(&own, svc)
	if p.Active() {
		checkProbeTimes(&own, p)
		checkProbePath(&own, svc)
		checkProbeTexts(&own, p)
	}
	for _, problem := range own.problems {
		problem.Field = "probe." + problem.Field
		chk.problems = append(chk.problems, problem)
	}
}

// checkProbeFit refuses settings that mean nothing with the type: who gave one
// expects something of it.
func checkProbeFit(chk *checker, svc Service) {
	p := svc.Probe
	for _, s := range []struct {
		field string
		given bool
		fits  bool
		with  string
	}{
		{"port", p.Port != 0, p.Active() && p.Type != ProbeICMP && !p.ThroughVIP, "a type that has ports, and not with through_vip, which goes to the service's"},
		{"interval", p.Interval != 0, p.Active(), "a type that asks something"},
		{"timeout", p.Timeout != 0, p.Active(), "a type that asks something"},
		{"rise", p.Rise != 0, p.Active(), "a type that asks something"},
		{"fall", p.Fall != 0, p.Active(), "a type that asks something"},
		{"source", p.Source.IsValid(), p.Active(), "a type that asks something"},
		{"through_vip", p.ThroughVIP, svc.Mode == ModeDSR && (p.Type == ProbeTCP || p.Type == ProbeUDP || p.Type == ProbeICMP), "mode dsr and type tcp, udp or icmp"},
		{"method", p.Method != "", p.http(), "type http or https"},
		{"path", p.Path != "", p.http(), "type http or https"},
		{"host", p.Host != "", p.http(), "type http or https"},
		{"expect", p.Expect != "", p.http(), "type http or https"},
		{"body", p.Body != "", p.http() || p.Type == ProbeUDP, "type http, https or udp"},
		{"send", p.Send != "", p.Type == ProbeUDP, "type udp"},
		{"tls", p.TLS, p.Type == ProbeGRPC, "type grpc; by TLS http is type https"},
		{"tls_verify", p.TLSVerify, p.tls(), "type https, or grpc with tls"},
		{"server_name", p.ServerName != "", p.tls(), "type https, or grpc with tls"},
		{"grpc_service", p.GRPCService != "", p.Type == ProbeGRPC, "type grpc"},
	} {
		if s.given && !s.fits {
			chk.bad(s.field, nil, "goes with %s only: leave it out", s.with)
		}
	}
}

func checkProbeTimes(chk *checker, p Probe) {
	chk.span("interval", p.Interval, MinProbeInterval, MaxProbeInterval)
	if p.Interval >= MinProbeInterval && p.Interval <= MaxProbeInterval {
		chk.span("timeout", p.Timeout, MinProbeTimeout, maxTimeoutIntervals*p.Interval)
	}
	if p.Rise > MaxProbeCount {
		chk.bad("rise", p.Rise, "must be 1 to %d", MaxProbeCount)
	}
	if p.Fall > MaxProbeCount {
		chk.bad("fall", p.Fall, "must be 1 to %d", MaxProbeCount)
	}
}

// checkProbePath is about where the packets of a probe come from.
func checkProbePath(chk *checker, svc Service) {
	source := svc.Probe.Source
	if !source.IsValid() || !chk.address("source", source) {
		return
	}
	for _, e := range svc.Endpoints {
		if a := e.Address.Addr(); a.IsValid() && a.Unmap().Is4() != source.Is4() {
			chk.bad("source", source, "is %s and endpoint %s is not: leave it out", family(source), e.Address)
			return
		}
	}
}

func checkProbeTexts(chk *checker, p Probe) {
	if p.Method != "" && !validToken(p.Method) {
		chk.bad("method", p.Method, "is no method of HTTP, like GET or HEAD")
	}
	if p.Path != "" && (!strings.HasPrefix(p.Path, "/") || !visible(p.Path, MaxProbePath)) {
		chk.bad("path", p.Path, "must begin with / and have no blanks, in at most %d bytes", MaxProbePath)
	}
	for _, name := range []struct{ field, value string }{{"host", p.Host}, {"server_name", p.ServerName}, {"grpc_service", p.GRPCService}} {
		if !visible(name.value, MaxProbeName) {
			chk.bad(name.field, name.value, "must be a name without blanks, in at most %d bytes", MaxProbeName)
		}
	}
	if p.Expect != "" {
		if _, err := ParseStatusSet(p.Expect); err != nil {
			chk.bad("expect", p.Expect, "is no set of status codes: want some of 100 to 599, like \"200\" or \"200,204,300-399\"")
		}
	}
	if len(p.Body) > MaxProbePath || !utf8.ValidString(p.Body) {
		chk.bad("body", p.Body, "must be text of at most %d bytes", MaxProbePath)
	}
	if _, err := p.Payload(); err != nil || len(p.Send) > MaxProbePath {
		chk.bad("send", p.Send, "must be text with the escapes of Go, like \\x00 and \\n, in at most %d bytes", MaxProbePath)
	}
}

// validToken says whether s is a token of at most 20 bytes (RFC 9110, 5.6.2).
func validToken(s string) bool {
	if s == "" || len(s) > 20 {
		return false
	}
	for _, b := range []byte(s) {
		letter := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
		if !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(b)) {
			return false
		}
	}
	return true
}

// visible says whether s is visible ASCII of at most so many bytes.
func visible(s string, most int) bool {
	for _, b := range []byte(s) {
		if b <= ' ' || b > '~' {
			return false
		}
	}
	return len(s) <= most
}
