package fsm

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// fullProbe has every setting, whether they go together or not.
func fullProbe() Probe {
	return Probe{
		Type: ProbeHTTPS, Port: 8443, Interval: MinProbeInterval, Timeout: MinProbeTimeout, Rise: 4, Fall: 5, Source: addr("192.0.2.77"),
		ThroughVIP: true, Method: "HEAD", Path: "/up", Host: "web.example", Expect: "200", Body: "fine", Send: `\x00`, TLS: true, TLSVerify: true,
		ServerName: "sni.example", GRPCService: "pkg.Service",
	}
}

func withProbe(p Probe) PutService {
	svc := webService()
	svc.Probe = p
	return PutService{Service: svc}
}

func TestServiceIsNotProbedUnlessSomebodySaysSo(t *testing.T) {
	svc, _ := threeNodes(t).Service("web")
	if want := (Probe{Type: ProbeNone}); svc.Probe != want || svc.OnDown != DownKeep || svc.AllDown != AllDownOpen || svc.SlowStart != 0 {
		t.Errorf("%+v", svc)
	}
}

func TestDefaultsOfProbe(t *testing.T) {
	timed := func(p Probe) Probe {
		p.Interval, p.Timeout, p.Rise, p.Fall = Duration(2*time.Second), Duration(time.Second), 2, 3
		return p
	}
	web := timed(Probe{Type: ProbeHTTP, Method: "GET", Path: "/", Expect: "200-399"})
	tls := web
	tls.Type = ProbeHTTPS
	for _, c := range []struct{ in, want Probe }{
		{Probe{}, Probe{Type: ProbeNone}},
		{Probe{Type: ProbeTCP}, timed(Probe{Type: ProbeTCP})},
		{Probe{Type: ProbeHTTP}, web},
		{Probe{Type: ProbeHTTPS}, tls},
		{Probe{Type: ProbeGRPC, Rise: 1, Source: addr("::ffff:10.1.0.9")}, func() Probe {
			p := timed(Probe{Type: ProbeGRPC, Source: addr("10.1.0.9")})
			p.Rise = 1
			return p
		}()},
	} {
		svc, _ := do(t, threeNodes(t), withProbe(c.in)).Service("web")
		if svc.Probe != c.want {
			t.Errorf("%+v became %+v, want %+v", c.in, svc.Probe, c.want)
		}
		again, _ := do(t, threeNodes(t), withProbe(svc.Probe)).Service("web")
		if again.Probe != svc.Probe {
			t.Errorf("%+v is no normal form: %+v", svc.Probe, again.Probe)
		}
	}
}

func TestDefaultProbeAsksNothingThatAServerMayNotKnow(t *testing.T) {
	for p, want := range map[Protocol]ProbeType{"": ProbeTCP, TCP: ProbeTCP, SCTP: ProbeSCTP, UDP: ProbeNone} {
		if got := DefaultProbe(p); got != (Probe{Type: want}) {
			t.Errorf("%q: %+v, want %s", p, got, want)
		}
	}
}

func TestProbesThatAreRefused(t *testing.T) {
	s := threeNodes(t)
	for name, c := range map[string]struct {
		p     Probe
		words []string
	}{
		"no such type":          {Probe{Type: "ping"}, []string{"probe.type ping must be tcp or http"}},
		"too often":             {Probe{Type: ProbeTCP, Interval: 1}, []string{"probe.interval 1ns must be 100ms to 1h"}},
		"too slow":              {Probe{Type: ProbeTCP, Interval: MinProbeInterval, Timeout: Duration(2 * time.Second)}, []string{"probe.timeout 2s must be 10ms to 1s"}},
		"too patient":           {Probe{Type: ProbeTCP, Rise: 101, Fall: 200}, []string{"probe.rise 101 must be 1 to 100", "probe.fall 200 must be 1 to 100"}},
		"a port of icmp":        {Probe{Type: ProbeICMP, Port: 1}, []string{"probe.port goes with a type that has ports"}},
		"none, and more":        {Probe{Port: 1, Interval: 1, Timeout: 1, Rise: 1, Fall: 1, Source: addr("10.1.0.9")}, []string{"probe.port", "probe.interval", "probe.timeout", "probe.rise", "probe.fall", "probe.source"}},
		"http words":            {Probe{Type: ProbeTCP, Method: "GET", Path: "/", Host: "a", Expect: "200", Body: "b"}, []string{"probe.method", "probe.path", "probe.host", "probe.expect", "probe.body"}},
		"udp words":             {Probe{Type: ProbeHTTP, Send: "x"}, []string{"probe.send goes with type udp only"}},
		"tls of http":           {Probe{Type: ProbeHTTP, TLS: true, TLSVerify: true, ServerName: "x"}, []string{"is type https", "probe.tls_verify", "probe.server_name"}},
		"grpc without tls":      {Probe{Type: ProbeGRPC, TLSVerify: true, ServerName: "x"}, []string{"probe.tls_verify", "probe.server_name"}},
		"a service of no grpc":  {Probe{Type: ProbeTCP, GRPCService: "x"}, []string{"probe.grpc_service"}},
		"through no dsr":        {Probe{Type: ProbeTCP, ThroughVIP: true}, []string{"probe.through_vip goes with mode dsr"}},
		"a wrong method":        {Probe{Type: ProbeHTTP, Method: "GET /"}, []string{`probe.method "GET /" is no method`}},
		"a wrong path":          {Probe{Type: ProbeHTTP, Path: "up"}, []string{"probe.path up must begin with /"}},
		"a path with blanks":    {Probe{Type: ProbeHTTP, Path: "/a\r\nb"}, []string{"probe.path"}},
		"a host with blanks":    {Probe{Type: ProbeHTTP, Host: "a b"}, []string{"probe.host"}},
		"a wrong set":           {Probe{Type: ProbeHTTP, Expect: "2xx"}, []string{"probe.expect 2xx is no set of status codes"}},
		"a long body":           {Probe{Type: ProbeHTTP, Body: strings.Repeat("x", MaxProbePath+1)}, []string{"probe.body"}},
		"a wrong payload":       {Probe{Type: ProbeUDP, Send: `\q`}, []string{"probe.send"}},
		"a source of no use":    {Probe{Type: ProbeTCP, Source: addr("127.0.0.1")}, []string{"probe.source 127.0.0.1 is a loopback address"}},
		"a source of the other": {Probe{Type: ProbeTCP, Source: addr("2001:db8::9")}, []string{"probe.source 2001:db8::9 is IPv6 and endpoint 10.1.0.1:8080 is not"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, s, withProbe(c.p), ErrInvalid, c.words...) })
	}
}

func TestProbesThatAreTaken(t *testing.T) {
	dsr := webService()
	dsr.Mode = ModeDSR
	for i := range dsr.Endpoints {
		dsr.Endpoints[i] = endpoint(dsr.Endpoints[i].Address.Addr().String()+":80", 1)
	}
	dsr.Probe = Probe{Type: ProbeUDP, ThroughVIP: true, Send: `\x00ping\n`, Body: "pong"}
	s := do(t, threeNodes(t), PutService{Service: dsr})
	got, _ := s.Service("web")
	if b, err := got.Probe.Payload(); err != nil || string(b) != "\x00ping\n" {
		t.Errorf("payload %q (%v)", b, err)
	}
	do(t, threeNodes(t), withProbe(Probe{Type: ProbeGRPC, TLS: true, TLSVerify: true, ServerName: "a.example", GRPCService: "a.B"}),
		withProbe(Probe{Type: ProbeHTTPS, Port: 8443, Method: "HEAD", Path: "/up?x=1", Host: "a.example:8443", Expect: "200, 204,300-399", TLSVerify: true}),
		withProbe(Probe{Type: ProbeICMP, Source: addr("10.1.0.9"), Interval: MinProbeInterval, Timeout: 10 * MinProbeInterval}))
}

func TestStatusSet(t *testing.T) {
	got, err := ParseStatusSet("200, 204,300-399")
	if want := []StatusRange{{200, 200}, {204, 204}, {300, 399}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v (%v), want %v", got, err, want)
	}
	for _, wrong := range []string{"", "99", "600", "200-", "-200", "300-200", "200,,300", "x", "200-300-400", "+200"} {
		if set, err := ParseStatusSet(wrong); err == nil {
			t.Errorf("%q reads as %v", wrong, set)
		}
	}
}

func TestPoliciesOfHealth(t *testing.T) {
	svc := webService()
	svc.OnDown, svc.AllDown, svc.SlowStart = DownMove, AllDownClosed, MaxSlowStart
	got, _ := do(t, threeNodes(t), PutService{Service: svc}).Service("web")
	if got.OnDown != DownMove || got.AllDown != AllDownClosed || got.SlowStart != MaxSlowStart {
		t.Errorf("%+v", got)
	}
	svc.OnDown, svc.AllDown, svc.SlowStart = "x", "y", 1
	refused(t, threeNodes(t), PutService{Service: svc}, ErrInvalid,
		"on_down x must be keep or reset or move", "all_down y must be open or closed", "slow_start 1ns must be 1s to 1h")
}

func TestProbeIsWrittenOnlyWhereItIsUsed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Service)
		want   int
	}{
		"nothing":    {func(*Service) {}, baseVersion},
		"none":       {func(s *Service) { s.Probe, s.OnDown, s.AllDown = Probe{Type: ProbeNone}, DownKeep, AllDownOpen }, baseVersion},
		"a probe":    {func(s *Service) { s.Probe = DefaultProbe(TCP) }, healthVersion},
		"on down":    {func(s *Service) { s.OnDown = DownReset }, healthVersion},
		"all down":   {func(s *Service) { s.AllDown = AllDownClosed }, healthVersion},
		"slow start": {func(s *Service) { s.SlowStart = MinSlowStart }, healthVersion},
	} {
		put := PutService{Service: webService()}
		c.change(&put.Service)
		b, err := Encode(put)
		if err != nil || peekVersion(b) != c.want {
			t.Errorf("%s: %s (%v), want version %d", name, b, err, c.want)
		}
		written := snap(t, do(t, threeNodes(t), put))
		if peekVersion(written) != c.want {
			t.Errorf("%s: snapshot of version %d, want %d", name, peekVersion(written), c.want)
		}
		for _, word := range []string{`"probe"`, "on_down", "all_down", "slow_start"} {
			if c.want == baseVersion && (strings.Contains(string(b), word) || strings.Contains(string(written), word)) {
				t.Errorf("%s: %s is written", name, word)
			}
		}
		back, err := Restore(written)
		if err != nil {
			t.Fatal(err)
		}
		was, _ := do(t, threeNodes(t), put).Service("web")
		if is, _ := back.Service("web"); is.Probe != was.Probe || is.OnDown != was.OnDown || is.AllDown != was.AllDown || is.SlowStart != was.SlowStart {
			t.Errorf("%s: %+v became %+v", name, was, is)
		}
	}
}
