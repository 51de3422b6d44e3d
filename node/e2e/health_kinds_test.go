package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/backend"
)

// How these tests probe: often, and with more patience than the servers, which are this process, need when
// the machine stands still for a second.
const (
	kindInterval = 250 * time.Millisecond
	kindTimeout  = 1500 * time.Millisecond
	kindFirst    = 9000 // port of the first service and of its servers
)

// dsrVIP is held by endpoints, too, so no fullnat service may have it.
var dsrVIP = netip.MustParseAddr("192.168.80.201")

// ailment is one way for an endpoint to go wrong, with words of which its probe says one.
type ailment struct {
	name      string
	hit, heal func(*testing.T, *patient)
	words     []string
}

// mood is an ailment of the server.
func mood(name string, b backend.Behaviour, words ...string) ailment {
	return ailment{
		name: name, words: words,
		hit:  func(t *testing.T, p *patient) { behave(t, p.server, b) },
		heal: func(t *testing.T, p *patient) { behave(t, p.server, backend.Behaviour{}) },
	}
}

// misfortune is an ailment of the host.
func misfortune(name string, hit, heal func(*lab.Host) error, words ...string) ailment {
	try := func(f func(*lab.Host) error) func(*testing.T, *patient) {
		return func(t *testing.T, p *patient) {
			if err := f(p.host); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ailment{name: name, words: words, hit: try(hit), heal: try(heal)}
}

// patient is a service of two endpoints, the first of which goes wrong.
type patient struct {
	name  string
	probe string // its type
	kind  backend.Config
	flags []string
	ills  []ailment

	sick      int        // which endpoint of the lab goes wrong, from 0
	protocol  string     // of the service, tcp when empty
	family    lab.Family // of the endpoints, IPv4 when 0
	dsr       bool       // the servers listen on the VIP only
	probePort bool       // the endpoints' own port is nobody's

	host     *lab.Host       // of the first endpoint
	server   *backend.Server // of the first endpoint
	bad, fit netip.AddrPort
}

func patients(l *lab.Lab) []*patient {
	var (
		dies    = mood("dies", backend.Behaviour{Mode: backend.Dead}, "refused", "unreachable", "abort", "ABORT")
		hangs   = mood("hangs", backend.Behaviour{Mode: backend.Hangs}, "no answer")
		slow    = mood("is too slow", backend.Behaviour{Mode: backend.Slow, Delay: 5 * kindTimeout}, "no answer")
		fails   = mood("answers 500", backend.Behaviour{Mode: backend.Fails}, "500")
		refuses = mood("is not serving", backend.Behaviour{Mode: backend.Fails}, "NOT_SERVING", "not serving")
		errs    = mood("answers something else", backend.Behaviour{Mode: backend.Fails}, `does not contain "pong"`)
		gone    = misfortune("loses its links", (*lab.Host).LinksDown, (*lab.Host).LinksUp, "no answer", "no route", "unreachable")
		deaf    = misfortune("answers no ping", func(h *lab.Host) error { return h.AnswerPings(false) },
			func(h *lab.Host) error { return h.AnswerPings(true) }, "no answer")

		tcp     = backend.Config{Kind: backend.TCP}
		shop    = backend.Config{Kind: backend.HTTP, Host: "shop.test", Path: "/ok", Body: "all is well"}
		secure  = backend.Config{Kind: backend.HTTPS, Host: "shop.test", Path: "/ok", Body: "all is well"}
		asks    = []string{"--probe-host", "shop.test", "--probe-path", "/ok", "--probe-expect", "200,204", "--probe-body", "is well"}
		asksTLS = append([]string{"--probe-server-name", "shop.test"}, asks...)
		source  = []string{"--probe-source", l.Nodes()[0].Addr().String()}
		says    = []string{"--probe-send", `\x00ping`, "--probe-body", "pong"}
	)
	return []*patient{
		{name: "tcp", probe: "tcp", kind: tcp, ills: []ailment{dies}, flags: source},
		{name: "tcp6", probe: "tcp", kind: tcp, ills: []ailment{dies}, family: lab.IPv6},
		{name: "gone", probe: "tcp", kind: tcp, ills: []ailment{gone}, sick: 2},
		{name: "through-vip", probe: "tcp", kind: tcp, ills: []ailment{dies}, dsr: true, flags: []string{"--probe-through-vip"}},
		{name: "http", probe: "http", kind: shop, ills: []ailment{dies, hangs, fails, slow}, flags: asks, probePort: true},
		{name: "https", probe: "https", kind: secure, ills: []ailment{dies, hangs, fails}, flags: asksTLS},
		{name: "icmp", probe: "icmp", kind: tcp, ills: []ailment{deaf}},
		{name: "icmp6", probe: "icmp", kind: tcp, ills: []ailment{deaf}, sick: 3, family: lab.IPv6},
		{
			name: "udp", probe: "udp", protocol: "udp", kind: backend.Config{Kind: backend.UDP, Body: "pong"},
			ills: []ailment{dies, hangs, errs}, flags: says,
		},
		{name: "sctp", probe: "sctp", protocol: "sctp", kind: backend.Config{Kind: backend.SCTP}, ills: []ailment{dies, hangs}},
		{
			name: "grpc", probe: "grpc", kind: backend.Config{Kind: backend.GRPC, GRPCService: "shop"},
			ills: []ailment{dies, hangs, refuses}, flags: []string{"--probe-grpc-service", "shop"},
		},
		{
			name: "grpc-tls", probe: "grpc", kind: backend.Config{Kind: backend.GRPC, TLS: true},
			ills: []ailment{dies, refuses}, flags: []string{"--probe-tls"},
		},
	}
}

// Each type of probe, beside each other on one cluster: both endpoints of a service are found well, the first goes wrong in each
// way that its probe can see, is found down with the reason in words, comes back, and is found up. The second is up all the time.
func TestEachProbeFindsItsServerDeadAndAliveAgain(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 1, Endpoints: 4})
	n := l.Nodes()[0]
	for _, vip := range []netip.Addr{lab.ServiceVIP(), lab.ServiceVIP6(), dsrVIP} {
		cli(t, n, "vip", "create", vip.String())
	}
	for _, ep := range l.Endpoints()[:2] {
		holdSilently(t, ep, dsrVIP)
	}
	all := patients(l)
	look := watchEndpoints(t, n)
	for i, p := range all {
		p.admit(t, l, kindFirst+uint16(i))
	}
	t.Run("kinds", func(t *testing.T) { // is over when all of them are
		for _, p := range all {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				p.examine(t, n, look)
			})
		}
		for i, f := range firsts() {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				f.check(t, l, look, kindFirst+1000+uint16(i))
			})
		}
	})
}

// admit starts both servers and makes the service.
func (p *patient) admit(t *testing.T, l *lab.Lab, port uint16) {
	t.Helper()
	p.host = l.Endpoints()[p.sick]
	family, protocol, mode := lab.IPv4, "tcp", "fullnat"
	if p.family != 0 {
		family = p.family
	}
	if p.protocol != "" {
		protocol = p.protocol
	}
	vip := family.ServiceVIP()
	if p.dsr {
		vip, mode = dsrVIP, "dsr"
	}
	listen := func(h *lab.Host) *backend.Server {
		at := h.AddrIn(family)
		if p.dsr {
			at = vip
		}
		return serveBackend(t, h, p.kind, netip.AddrPortFrom(at, port))
	}
	other := l.Endpoints()[1]
	p.server = listen(p.host)
	listen(other)
	named := port
	flags := append([]string{"--probe-interval", kindInterval.String(), "--probe-timeout", kindTimeout.String(), "--probe-fall", "2"}, p.flags...)
	if p.probePort {
		named += 500
		flags = append(flags, "--probe-port", fmt.Sprint(port))
	}
	p.bad, p.fit = netip.AddrPortFrom(p.host.AddrIn(family), named), netip.AddrPortFrom(other.AddrIn(family), named)
	cli(t, l.Nodes()[0], append([]string{
		"service", "create", p.name, "--vip", vip.String(), "--port", fmt.Sprint(port), "--protocol", protocol, "--mode", mode,
		"--endpoint", p.bad.String(), "--endpoint", p.fit.String(), "--probe", p.probe,
	}, flags...)...)
}

// examine has it go through all its ailments.
func (p *patient) examine(t *testing.T, n *lab.Node, look *endpointsWatch) {
	look.health(t, p.name, p.fit, "up")
	up := look.health(t, p.name, p.bad, "up")
	for _, ill := range p.ills {
		up = p.suffer(t, n, look, ill, up)
	}
}

// suffer has it fall ill and recover once, and returns how it was found then.
func (p *patient) suffer(t *testing.T, n *lab.Node, look *endpointsWatch, ill ailment, up endpointSeen) endpointSeen {
	t.Helper()
	fit := look.health(t, p.name, p.fit, "up")
	began := time.Now()
	ill.hit(t, p)
	down := look.await(t, "down as it "+ill.name, p.name, p.bad, func(e endpointSeen) error {
		if e.Health != "down" || !one(e.Error, ill.words) || !one(e.WhyOut, ill.words) {
			return fmt.Errorf("want down with one of %q", ill.words)
		}
		return nil
	})
	t.Logf("%s: %s, seen after %s", ill.name, down, time.Since(began).Round(time.Millisecond))
	if !down.Since.After(up.Since) {
		t.Errorf("it %s: down since %s, and was up since %s", ill.name, down.Since, up.Since)
	}
	if shown := cli(t, n, "service", "show", p.name); !one(shown, ill.words) {
		t.Errorf("it %s, and service show does not say why it is out:\n%s", ill.name, shown)
	}
	p.awaitEvent(t, n, "down", began, ill.words)
	if e := look.health(t, p.name, p.fit, "up"); !e.Since.Equal(fit.Since) {
		t.Errorf("it %s, and the other endpoint was not up all the time: %s", ill.name, e)
	}
	healed := time.Now()
	ill.heal(t, p)
	up = look.await(t, "up again after it "+ill.name, p.name, p.bad, func(e endpointSeen) error {
		if e.Health != "up" || e.Error != "" || e.WhyOut != "" || e.P50 <= 0 || e.P99 < e.P50 {
			return fmt.Errorf("want up, no error, and how long answers take (%g and %g ms)", e.P50, e.P99)
		}
		return nil
	})
	if !up.Since.After(down.Since) {
		t.Errorf("after it %s: up since %s, and was down since %s", ill.name, up.Since, down.Since)
	}
	p.awaitEvent(t, n, "up", healed, nil)
	return up
}

// awaitEvent waits until there is an event, not older than after, that the endpoint is up, or down for one
// of these reasons.
func (p *patient) awaitEvent(t *testing.T, n *lab.Node, state string, after time.Time, words []string) {
	t.Helper()
	eventually(t, 10*time.Second, fmt.Sprintf("an event that %s of %s is %s", p.bad, p.name, state), func(ctx context.Context) error {
		list, err := events(ctx, n)
		if err != nil {
			return err
		}
		for _, e := range list {
			f := e.Fields
			if e.Kind == "health" && f["service"] == p.name && f["endpoint"] == p.bad.String() && f["to"] == state &&
				strings.Contains(e.Text, state) && one(f["why"], words) && !e.Time.Before(after) {
				return nil
			}
		}
		return fmt.Errorf("not among %d", len(list))
	})
}

// one says whether the text has one of the words, or there are none.
func one(text string, words []string) bool {
	return len(words) == 0 || slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// first is a service of one endpoint, and what its first probes find.
type first struct {
	name, probe string
	kind        backend.Config
	flags       []string
	dead        bool // the server is
	health      string
	words       []string
}

func firsts() []first {
	secure := backend.Config{Kind: backend.HTTPS, Host: "shop.test"}
	return []first{
		{name: "untrusted", probe: "https", kind: secure, flags: []string{"--probe-tls-verify", "--probe-server-name", "shop.test"}, health: "down", words: []string{"certificate"}},
		{name: "unnamed", probe: "https", kind: secure, flags: []string{"--probe-server-name", "other.test"}, health: "down"},
		{name: "another-body", probe: "http", kind: backend.Config{Kind: backend.HTTP}, flags: []string{"--probe-body", "sesame"}, health: "down", words: []string{"body", "sesame"}},
		{name: "another-path", probe: "http", kind: backend.Config{Kind: backend.HTTP, Path: "/ok"}, flags: []string{"--probe-path", "/"}, health: "down", words: []string{"404"}},
		{name: "expected-404", probe: "http", kind: backend.Config{Kind: backend.HTTP, Path: "/ok"}, flags: []string{"--probe-expect", "400-499"}, health: "up"},
		{name: "unknown-service", probe: "grpc", kind: backend.Config{Kind: backend.GRPC}, flags: []string{"--probe-grpc-service", "other"}, health: "down"},
		{name: "by-default", kind: backend.Config{Kind: backend.TCP}, health: "up"},
		{name: "dead-by-default", kind: backend.Config{Kind: backend.TCP}, dead: true, health: "down", words: []string{"refused"}},
		{name: "not-probed", probe: "none", kind: backend.Config{Kind: backend.TCP}, dead: true, health: "unknown"},
	}
}

// check makes the service and looks at the outcome.
func (f first) check(t *testing.T, l *lab.Lab, look *endpointsWatch, port uint16) {
	at := netip.AddrPortFrom(l.Endpoints()[0].Addr(), port)
	server := serveBackend(t, l.Endpoints()[0], f.kind, at)
	if f.dead {
		behave(t, server, backend.Behaviour{Mode: backend.Dead})
	}
	args := []string{
		"service", "create", f.name, "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(port), "--protocol", "tcp",
		"--mode", "fullnat", "--endpoint", at.String(),
	}
	if f.probe != "" {
		args = append(args, "--probe", f.probe)
	}
	if f.probe != "" && f.probe != "none" {
		args = append(args, "--probe-interval", kindInterval.String(), "--probe-timeout", kindTimeout.String(), "--probe-fall", "2")
	}
	cli(t, l.Nodes()[0], append(args, f.flags...)...)
	if f.health == "unknown" { // nothing to wait for but what must not come
		pass(t, 6*kindInterval)
	}
	e := look.await(t, f.health, f.name, at, func(e endpointSeen) error {
		if e.Health != f.health || !one(e.Error, f.words) {
			return errors.New("not so")
		}
		return nil
	})
	t.Log(e)
}
