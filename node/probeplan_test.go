package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/health"
)

var comparableAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

func socket(a string) netip.AddrPort { return netip.MustParseAddrPort(a) }

// webOn is a service that is probed by TCP.
func webOn(name, vip string, endpoints ...string) fsm.PutService {
	svc := fsm.Service{Name: name, VIP: mustAddr(vip), Port: 80, Probe: fsm.Probe{Type: fsm.ProbeTCP}}
	for _, e := range endpoints {
		svc.Endpoints = append(svc.Endpoints, fsm.Endpoint{Address: socket(e), Weight: 1})
	}
	return fsm.PutService{Service: svc}
}

// tell commits verdicts on the endpoints of a service, in their order.
func tell(t *testing.T, s *fsm.State, service string, verdicts ...fsm.Verdict) *fsm.State {
	t.Helper()
	svc, ok := s.Service(service)
	if !ok {
		t.Fatalf("no service %s", service)
	}
	instance := instanceFor(s, svc)
	node, epoch := s.Prober(instance)
	for i := range verdicts {
		verdicts[i].Endpoint, verdicts[i].Since = svc.Endpoints[i].ID, noon
	}
	return stateWith(t, s, fsm.SetHealth{Instance: instance, Node: node, Epoch: epoch, Verdicts: verdicts})
}

func TestWhoProbesHowOften(t *testing.T) {
	s := stateWith(t, balancers(t, 3), fsm.PutInstance{Name: "shared", Kind: fsm.InstanceECMP}, fsm.MoveInstance{Name: fsm.DefaultInstance, To: "lb2"})
	first, _ := s.Prober("shared")
	for _, n := range s.Nodes() {
		want := map[string]uint8{"default": restingFactor, "shared": restingFactor}
		if n.Name == "lb2" {
			want["default"] = 1
		}
		if n.Name == first {
			want["shared"] = 1
		}
		if d := cmp.Diff(want, probeFactors(s, n.Name)); d != "" {
			t.Errorf("%s: %s", n.Name, d)
		}
	}
	s = stateWith(t, s, fsm.DrainNode{Node: "lb3", Draining: true})
	if got := probeFactors(s, "lb3"); len(got) != 0 {
		t.Errorf("a node that drains probes: %v", got)
	}
	if got := probeFactors(s, "lb9"); got != nil {
		t.Errorf("who is no member probes: %v", got)
	}
}

func TestTargetsSayWhatIsProbed(t *testing.T) {
	web := webOn("web", "192.0.2.100", "198.51.100.1:8080", "198.51.100.2:8080", "198.51.100.3:8080")
	web.Service.Probe = fsm.Probe{
		Type: fsm.ProbeHTTP, Port: 9000, Interval: fsm.Duration(time.Second), Timeout: fsm.Duration(500 * time.Millisecond), Rise: 1, Fall: 4,
		Path: "/live", Host: "web.example", Expect: "204", Body: "fine",
	}
	plain := webOn("plain", "192.0.2.101", "198.51.100.1:80")
	plain.Service.Probe.Type = fsm.ProbeNone
	s := stateWith(t, balancers(t, 2), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.101")}},
		web, plain, fsm.SetEndpointAdmin{Service: "web", Endpoint: socket("198.51.100.3:8080"), Admin: fsm.AdminDown})
	s = tell(t, s, "web", fsm.Verdict{Health: fsm.HealthUnknown}, fsm.Verdict{Health: fsm.HealthDown})
	targets, problems := probeTargets(s, map[string]uint8{"default": 5})
	if len(problems) > 0 {
		t.Error(problems)
	}
	svc, _ := s.Service("web")
	probe := health.Probe{
		Type: health.TypeHTTP, Port: 9000, Interval: time.Second, Timeout: 500 * time.Millisecond, Rise: 1, Fall: 4,
		Method: "GET", Path: "/live", Host: "web.example", Expect: "204", Body: "fine",
	}
	want := []health.Target{
		{Key: svc.Endpoints[0].ID, Addr: socket("198.51.100.1:8080"), VIP: socket("192.0.2.100:80"), Probe: probe, Factor: 5, Start: health.Unknown},
		{Key: svc.Endpoints[1].ID, Addr: socket("198.51.100.2:8080"), VIP: socket("192.0.2.100:80"), Probe: probe, Factor: 5, Start: health.Down},
	}
	if d := cmp.Diff(want, targets, comparableAddrs); d != "" {
		t.Error(d)
	}
	if targets, _ := probeTargets(s, map[string]uint8{"other": 1}); targets != nil {
		t.Errorf("those of another instance: %v", targets)
	}
}

func TestEveryProbeOfTheConfigurationIsOneOfTheProbers(t *testing.T) {
	for _, p := range []fsm.Probe{
		{Type: fsm.ProbeTCP},
		{Type: fsm.ProbeHTTP},
		{Type: fsm.ProbeHTTPS, TLSVerify: true, ServerName: "web.example"},
		{Type: fsm.ProbeICMP},
		{Type: fsm.ProbeUDP, Send: `\x00ping`, Body: "pong"},
		{Type: fsm.ProbeSCTP},
		{Type: fsm.ProbeGRPC, TLS: true, GRPCService: "a.B"},
	} {
		web := webOn("web", "192.0.2.100", "198.51.100.1:8080")
		web.Service.Probe = p
		if p.Type == fsm.ProbeUDP {
			web.Service.Protocol = fsm.UDP
		}
		s := stateWith(t, balancers(t, 1), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, web)
		targets, problems := probeTargets(s, map[string]uint8{"default": 1})
		if len(problems) > 0 || len(targets) != 1 || targets[0].Probe.Type.String() != string(p.Type) {
			t.Errorf("%s: %v, %v", p.Type, targets, problems)
		}
		if p.Type == fsm.ProbeUDP && targets[0].Probe.Send != "\x00ping" {
			t.Errorf("sends %q", targets[0].Probe.Send)
		}
	}
}

func TestANewProberFindsOutByItself(t *testing.T) {
	p := fsm.Probe{Rise: 2, Fall: 3}
	up, down, unknown := fsm.Verdict{Health: fsm.HealthUp}, fsm.Verdict{Health: fsm.HealthDown}, fsm.Verdict{Health: fsm.HealthUnknown}
	for name, tc := range map[string]struct {
		r         health.Result
		committed fsm.Verdict
		probes    uint64
		want      bool
	}{
		"nothing known":                {health.Result{Health: health.Unknown}, up, 99, false},
		"agrees at once":               {health.Result{Health: health.Up, Up: true}, up, 0, true},
		"agrees on a death":            {health.Result{Health: health.Down}, down, 0, true},
		"the first to know":            {health.Result{Health: health.Down}, unknown, 0, true},
		"alive, after one probe":       {health.Result{Health: health.Up, Up: true, Passed: true}, down, 1, false},
		"alive, after two":             {health.Result{Health: health.Up, Up: true, Passed: true}, down, 2, true},
		"alive, but it fails now":      {health.Result{Health: health.Up, Up: true}, down, 2, false},
		"dead, after two probes":       {health.Result{Health: health.Down}, up, 2, false},
		"dead, after three":            {health.Result{Health: health.Down}, up, 3, true},
		"dead, but it answers now":     {health.Result{Health: health.Down, Passed: true}, up, 3, false},
		"was dead before it was asked": {health.Result{Health: health.Down}, up, 0, false},
	} {
		if got := ownResult(tc.r, p, tc.committed, tc.probes); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestFindingsAreThoseOfTheProber(t *testing.T) {
	s := stateWith(t, balancers(t, 2), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, webOn("web", "192.0.2.100", "198.51.100.1:80", "198.51.100.2:80"))
	s = tell(t, s, "web", fsm.Verdict{Health: fsm.HealthUp}, fsm.Verdict{Health: fsm.HealthUp})
	svc, _ := s.Service("web")
	a, b := svc.Endpoints[0].ID, svc.Endpoints[1].ID
	results := map[uint32]health.Result{
		a: {Key: a, Health: health.Up, Up: true, At: noon, Passed: true, Probes: 100},
		b: {Key: b, Health: health.Down, At: noon, Since: noon, Why: "no answer in 1s", Probes: 102, Row: 50},
	}
	all := findings(s, map[string]uint8{"default": 1}, results, map[uint32]uint64{a: 98, b: 100})
	if len(all) != 2 || !all[0].known || !all[0].up || all[0].failing || all[1].known || !all[1].failing {
		t.Fatalf("%+v", all)
	}
	if all = findings(s, map[string]uint8{"default": 1}, results, map[uint32]uint64{b: 99}); !all[1].known || all[1].why != "no answer in 1s" || all[1].span != 6*time.Second {
		t.Errorf("%+v", all)
	}
	r := results[b]
	r.Row = 2 // the third from the end passed
	results[b] = r
	if all = findings(s, map[string]uint8{"default": 1}, results, map[uint32]uint64{b: 99}); all[1].known {
		t.Errorf("two failures in a row as prober: %+v", all[1])
	}
	if all = findings(s, map[string]uint8{"default": 1}, results, nil); !all[1].known {
		t.Errorf("prober for long: %+v", all[1])
	}
	if all = findings(s, map[string]uint8{"default": restingFactor}, results, nil); len(all) != 0 {
		t.Errorf("of a node that is not the prober: %+v", all)
	}
}

func TestProbesCountFromTheTakeOver(t *testing.T) {
	vip := fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}
	s := stateWith(t, balancers(t, 2), vip, webOn("web", "192.0.2.100", "198.51.100.1:80", "198.51.100.2:80"))
	svc, _ := s.Service("web")
	a, b := svc.Endpoints[0].ID, svc.Endpoints[1].ID
	seen := func(n, m uint64) map[uint32]health.Result {
		return map[uint32]health.Result{a: {Key: a, Probes: n}, b: {Key: b, Probes: m}}
	}
	other := fsm.NodeID("lb1")
	if node, _ := s.Prober(fsm.DefaultInstance); node == other {
		other = "lb2"
	}
	p := &probing{base: map[uint32]uint64{}, factors: map[string]uint8{"default": restingFactor}}
	if p.takeUp(s, seen(10, 20)); len(p.base) != 0 {
		t.Errorf("a backup counts from %v", p.base)
	}
	s = stateWith(t, s, fsm.MoveInstance{Name: fsm.DefaultInstance, To: other})
	p.factors = map[string]uint8{"default": 1}
	p.takeUp(s, seen(11, 21))
	p.takeUp(s, seen(12, 22))
	if d := cmp.Diff(map[uint32]uint64{a: 11, b: 21}, p.base); d != "" {
		t.Errorf("from the take-over on: %s", d)
	}
	if p.takeUp(s, seen(3, 22)); len(p.base) != 1 || p.base[b] != 21 {
		t.Errorf("one is probed otherwise, and counted anew: %v", p.base)
	}
	if p.takeUp(s, seen(3, 21+fsm.MaxProbeCount)); len(p.base) != 0 {
		t.Errorf("long ago: %v", p.base)
	}
	p.base[b+1] = 0
	if p.takeUp(s, seen(3, 22)); len(p.base) != 0 {
		t.Errorf("of an endpoint that is gone: %v", p.base)
	}
}

// A node was cut off, found everything dead, and becomes prober as the cut has just ended: what was sent into the cut fails yet,
// and is no death that it has found as prober, even if one failure is enough.
func TestAProbeFromBeforeTheTakeOverIsNoneOfTheProbers(t *testing.T) {
	p := &probing{base: map[uint32]uint64{}, factors: map[string]uint8{"default": 1}}
	put := webOn("web", "192.0.2.100", "198.51.100.1:80")
	put.Service.Probe.Fall = 1
	s := stateWith(t, balancers(t, 2), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, put)
	s = tell(t, s, "web", fsm.Verdict{Health: fsm.HealthUp})
	svc, _ := s.Service("web")
	id := svc.Endpoints[0].ID
	r := health.Result{Key: id, Health: health.Down, At: noon, Probes: 7, Row: 7, Flying: true}
	known := func() bool {
		t.Helper()
		results := map[uint32]health.Result{id: r}
		p.takeUp(s, results)
		all := findings(s, p.factors, results, p.base)
		if next := nextLook(all, false, time.Time{}, noon); (next <= lookOwn) == all[0].known {
			t.Errorf("it is looked at again after %s, although the prober tells of no change", next)
		}
		return all[0].known
	}
	if known() {
		t.Error("what it found before counts")
	}
	r.Probes, r.Row, r.Flying = 8, 8, false
	if known() {
		t.Error("the probe that was under way counts")
	}
	r.Probes, r.Row, r.Passed = 9, 1, true
	if known() {
		t.Error("it is called dead by a probe that passed")
	}
	r.Probes, r.Row, r.Passed = 10, 1, false
	if !known() {
		t.Error("its own failure does not count")
	}
}

func TestNextLookIsTheSoonestThatIsOfUse(t *testing.T) {
	early := []finding{{}, {early: true}}
	for _, tc := range []struct {
		all       []finding
		unsettled bool
		later     time.Duration // 0: never
		want      time.Duration
	}{
		{nil, false, 0, lookVerdicts},
		{nil, true, 0, retryVerdicts},
		{early, false, 0, lookOwn},
		{early, true, time.Second, lookOwn},
		{nil, false, time.Second, time.Second},
		{early, true, 50 * time.Millisecond, 50 * time.Millisecond},
		{nil, false, -time.Second, gatherVerdicts},
	} {
		var later time.Time
		if tc.later != 0 {
			later = noon.Add(tc.later)
		}
		if got := nextLook(tc.all, tc.unsettled, later, noon); got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

func TestPortsOfSlotsCoverAllAndMeetNowhere(t *testing.T) {
	next := 1024
	for slot := range uint8(bpf.Slots) {
		first, last := slotPorts(slot)
		if int(first) != next || last <= first {
			t.Errorf("slot %d has ports %d to %d, want them from %d on", slot, first, last, next)
		}
		next = int(last) + 1
	}
	if next != 1<<16 {
		t.Errorf("the last slot ends before %d", next)
	}
	if first, last := slotPorts(bpf.Slots); first != 0 || last != 0 {
		t.Errorf("no slot has ports %d to %d", first, last)
	}
}
