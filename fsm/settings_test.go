package fsm

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// twoFamilies is threeNodes with VIPs of both families, one of them for SNAT.
func twoFamilies(t testing.TB) *State {
	t.Helper()
	return do(t, threeNodes(t),
		PutVIP{VIP: VIP{Address: addr("2001:db8::100")}}, PutVIP{VIP: VIP{Address: addr("10.0.0.101")}},
		PutVIP{VIP: VIP{Address: addr("10.1.0.101"), Kind: VIPSNAT}})
}

// on is a service in front of one endpoint, changed.
func on(vip, at string, change func(*Service)) PutService {
	svc := Service{Name: "x", VIP: addr(vip), Port: 8000, Endpoints: []Endpoint{endpoint(at, 1)}}
	if change != nil {
		change(&svc)
	}
	return PutService{Service: svc}
}

func TestSettingsThatFit(t *testing.T) {
	s := twoFamilies(t)
	for name, c := range map[string]PutService{
		"IPv6":             on("2001:db8::100", "[2001:db8:1::1]:80", nil),
		"mapped is IPv4":   on("::ffff:10.0.0.101", "[::ffff:10.1.0.1]:80", func(s *Service) { s.Mode = ModeDNAT }),
		"nat64":            on("2001:db8::100", "10.1.0.1:80", nil),
		"nat46":            on("10.0.0.101", "[2001:db8:1::1]:80", nil),
		"sctp":             on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Protocol = SCTP }),
		"lc":               on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Algorithm = LeastConnections }),
		"dsr":              on("10.0.0.101", "10.1.0.1:8000", func(s *Service) { s.Mode = ModeDSR }),
		"dsr by ipip":      on("2001:db8::100", "[2001:db8:1::1]:8000", func(s *Service) { s.Mode, s.Tunnel = ModeDSR, TunnelIPIP }),
		"range to the end": on("10.0.0.101", "10.1.0.1:65435", func(s *Service) { s.PortEnd = 8100 }),
		"all ports":        on("10.0.0.101", "10.1.0.1:1", func(s *Service) { s.Port, s.PortEnd = 1, 65535 }),
		"week of affinity": on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Affinity, s.AffinityTimeout = AffinityClientIP, MaxAffinityTimeout }),
		"keep and reset":   on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.OnRemove, s.OnFull = RemoveKeep, FullReset }),
		"drain":            on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.DrainTimeout = MaxDrainTimeout }),
		"replicate all":    on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Replicate = ReplicateAll }),
		"replicate late":   on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.ReplicateMinAge = MaxReplicateMinAge }),
		"no rate limit":    on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.NewFlowRate = math.MaxUint32 }),
	} {
		if err := s.Check(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettingsThatDoNotFit(t *testing.T) {
	s := twoFamilies(t)
	for _, r := range []struct {
		name   string
		put    PutService
		words  string
		advice string
	}{
		{"range turned round", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.PortEnd = 7999 }), "port_end 7999 is before port 8000", "last port"},
		{"no room above the endpoint's port", on("10.0.0.101", "10.1.0.1:65436", func(s *Service) { s.PortEnd = 8100 }), "port 65436 leaves no room for the service's 101 ports", "at most 65435"},
		{"dsr on another port", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Mode = ModeDSR }), "endpoints[10.1.0.1:80].port 80 must be 8000", "rewrites no packet"},
		{"dsr to the other family", on("2001:db8::100", "10.1.0.1:8000", func(s *Service) { s.Mode = ModeDSR }), "is IPv4 and the VIP is IPv6", "fullnat"},
		{"dnat to the other family", on("10.0.0.101", "[2001:db8:1::1]:80", func(s *Service) { s.Mode = ModeDNAT }), "is IPv6 and the VIP is IPv4", "fullnat"},
		{"onearm to the other family", on("10.0.0.101", "[2001:db8:1::1]:80", func(s *Service) { s.Mode = ModeOneArm }), "is IPv6 and the VIP is IPv4", "fullnat"},
		{"tunnel", on("10.0.0.101", "10.1.0.1:8000", func(s *Service) { s.Mode, s.Tunnel = ModeDSR, "gre" }), "tunnel gre must be l2 or ipip", ""},
		{"tunnel without dsr", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Tunnel = TunnelL2 }), "tunnel l2 goes with mode dsr only", "leave it out"},
		{"affinity", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Affinity = "cookie" }), "affinity cookie must be none or client-ip", ""},
		{"affinity too short", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Affinity, s.AffinityTimeout = AffinityClientIP, 1 }), "affinity_timeout 1ns must be 1s to 168h", ""},
		{"affinity timeout alone", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.AffinityTimeout = MinAffinityTimeout }), "affinity_timeout 1s goes with affinity client-ip only", "leave it out"},
		{"drain too long", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.DrainTimeout = MaxDrainTimeout + 1 }), "drain_timeout", "1s to 168h"},
		{"drain negative", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.DrainTimeout = -1 }), "drain_timeout -1ns", "1s to 168h"},
		{"on remove", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.OnRemove = "x" }), "on_remove x must be reset or drop or keep", ""},
		{"on full", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.OnFull = "keep" }), "on_full keep must be drop or reset", ""},
		{"replicate", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Replicate = "some" }), "replicate some must be established or all or none", ""},
		{"replicate too late", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.ReplicateMinAge = MaxReplicateMinAge + 1 }), "replicate_min_age", "0s to 1h"},
		{"replicate before it begins", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.ReplicateMinAge = -1 }), "replicate_min_age -1ns", "0s to 1h"},
		{"replicate nothing late", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Replicate, s.ReplicateMinAge = ReplicateNone, 1 }), "replicate_min_age 1ns goes with replicate established only", "leave it out"},
		{"snat vip", on("10.1.0.101", "10.1.0.1:80", nil), "is of kind snat", "use one of kind service"},
		{"endpoint on a snat vip", on("10.0.0.101", "10.1.0.101:80", nil), "is a VIP of this cluster", ""},
		{"link-local endpoint", on("2001:db8::100", "[fe80::1]:80", nil), "is a link-local address", "global scope"},
		{"endpoint with a zone", on("2001:db8::100", "[2001:db8::1%eth0]:80", nil), "has a zone", "global scope"},
		{"multicast endpoint", on("2001:db8::100", "[ff02::1]:80", nil), "multicast", ""},
		{"deadline without a drain", on("10.0.0.101", "10.1.0.1:80", func(s *Service) { s.Endpoints[0].DrainUntil = epoch0 }), "drain_until 2026-01-02T03:04:05Z goes with admin drain only", ""},
		{"deadline that cannot be written", on("10.0.0.101", "10.1.0.1:80", func(s *Service) {
			s.Endpoints[0].Admin, s.Endpoints[0].DrainUntil = AdminDrain, time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)
		}), "drain_until is in the year 12000", ""},
	} {
		t.Run(r.name, func(t *testing.T) { refused(t, s, r.put, ErrInvalid, r.words, r.advice) })
	}
}

func TestRangesOfOneAddressAndProtocolDoNotOverlap(t *testing.T) {
	put := func(name, vip string, proto Protocol, first, last uint16) PutService {
		return PutService{Service: Service{Name: name, VIP: addr(vip), Protocol: proto, Port: first, PortEnd: last}}
	}
	s := do(t, twoFamilies(t), put("a", "10.0.0.101", TCP, 100, 200), put("b", "10.0.0.101", TCP, 201, 0), put("c", "10.0.0.101", TCP, 300, 400))
	for _, r := range []struct {
		name        string
		first, last uint16
		with        string // "" fits
	}{
		{"before all", 1, 99, ""},
		{"between", 202, 299, ""},
		{"after all", 401, 65535, ""},
		{"the same", 100, 200, "a"},
		{"one port inside", 150, 0, "a"},
		{"the last port", 200, 0, "a"},
		{"into the front", 50, 100, "a"},
		{"out of the back", 400, 500, "c"},
		{"around one", 250, 450, "c"},
		{"around all", 1, 65535, "a"},
		{"a single port's", 201, 0, "b"},
		{"from the gap on", 202, 300, "c"},
	} {
		t.Run(r.name, func(t *testing.T) {
			c := put("x", "10.0.0.101", TCP, r.first, r.last)
			if r.with != "" {
				refused(t, s, c, ErrInUse, "service "+r.with+":")
			} else if err := s.Check(c); err != nil {
				t.Error(err)
			}
			for _, other := range []PutService{put("x", "10.0.0.101", UDP, r.first, r.last), put("x", "2001:db8::100", TCP, r.first, r.last)} {
				if err := s.Check(other); err != nil {
					t.Errorf("in %s on %s: %v", other.Service.Protocol, other.Service.VIP, err)
				}
			}
		})
	}
	// A service may grow and shrink where it stands, and no further.
	for _, fits := range []PutService{put("a", "10.0.0.101", TCP, 150, 0), put("a", "10.0.0.101", TCP, 1, 200), put("c", "10.0.0.101", TCP, 202, 65535)} {
		if err := s.Check(fits); err != nil {
			t.Error(err)
		}
	}
	refused(t, s, put("a", "10.0.0.101", TCP, 100, 201), ErrInUse, "port 100-201 with tcp on 10.0.0.101 overlaps 201 of service b")
	// What a service leaves is free.
	s = do(t, s, put("a", "10.0.0.101", TCP, 100, 120), put("d", "10.0.0.101", TCP, 121, 200))
	refused(t, s, put("a", "10.0.0.101", TCP, 100, 200), ErrInUse, "of service d")
	if got, _ := do(t, s, put("d", "10.0.0.101", TCP, 130, 130)).Service("d"); got.PortEnd != 0 {
		t.Errorf("a range of one port is kept as %d-%d", got.Port, got.PortEnd)
	}
}

func TestSNATVIPsMayNotBecomeSomethingServicesNeed(t *testing.T) {
	s := twoFamilies(t)
	s = do(t, s, PutVIP{VIP: VIP{Address: addr("10.1.0.101")}}, on("10.1.0.101", "10.1.0.1:80", nil))
	refused(t, s, PutVIP{VIP: VIP{Address: addr("10.1.0.101"), Kind: VIPSNAT}}, ErrInUse, "services x")
}

func TestDrainDeadlines(t *testing.T) {
	s := threeNodes(t)
	at, until := addrPort("10.1.0.1:8080"), epoch0.Add(time.Hour)
	drain := func(until time.Time) Command {
		return SetEndpointAdmin{Service: "web", Endpoint: at, Admin: AdminDrain, Until: until}
	}
	deadline := func(s *State) time.Time {
		svc, _ := s.Service("web")
		return svc.Endpoints[0].DrainUntil
	}
	refused(t, s, SetEndpointAdmin{Service: "web", Endpoint: at, Admin: AdminUp, Until: until}, ErrInvalid, "until", "goes with drain only")
	refused(t, s, drain(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)), ErrInvalid, "year 10000")

	local := time.FixedZone("x", 3600)
	s = do(t, s, drain(until.In(local)))
	if got := deadline(s); got != until {
		t.Fatalf("deadline %v, want %v in UTC", got, until)
	}
	put := webService()
	put.Endpoints[1].Admin, put.Endpoints[1].DrainUntil = AdminDrain, until.Add(time.Hour)
	if got := deadline(do(t, s, PutService{Service: put})); got != until {
		t.Errorf("putting a draining endpoint moved its deadline to %v", got)
	}
	if got := deadline(do(t, s, drain(until.Add(time.Hour)))); got != until.Add(time.Hour) {
		t.Errorf("draining anew left the deadline at %v", got)
	}
	if got := deadline(do(t, s, drain(time.Time{}))); !got.IsZero() {
		t.Errorf("draining without end left the deadline at %v", got)
	}
	up := do(t, s, SetEndpointAdmin{Service: "web", Endpoint: at, Admin: AdminUp})
	if got := deadline(up); !got.IsZero() {
		t.Errorf("resuming left the deadline at %v", got)
	}
	if got := deadline(do(t, up, PutService{Service: put})); got != until.Add(time.Hour) {
		t.Errorf("a put that begins a drain gives the deadline %v", got)
	}
	if got := (Service{}).Deadline(epoch0); !got.IsZero() {
		t.Errorf("without a timeout a drain ends at %v", got)
	}
	if got := (Service{DrainTimeout: Duration(time.Minute)}).Deadline(epoch0); got != epoch0.Add(time.Minute) {
		t.Errorf("a drain of a minute ends at %v", got)
	}
}

func TestFrontendIsWrittenAsPeopleReadIt(t *testing.T) {
	for want, s := range map[string]Service{
		"10.0.0.1:80/tcp":                 {VIP: addr("10.0.0.1"), Port: 80, Protocol: TCP},
		"[2001:db8::1]:8000-8100/sctp":    {VIP: addr("2001:db8::1"), Port: 8000, PortEnd: 8100, Protocol: SCTP},
		"10.0.0.1:65534-65535/udp":        {VIP: addr("10.0.0.1"), Port: 65534, PortEnd: 65535, Protocol: UDP},
		"[2001:db8::1]:53/" + string(UDP): {VIP: addr("2001:db8::1"), Port: 53, Protocol: UDP},
	} {
		if got := s.Frontend(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// What version 1 wrote knew nothing of endpoint ids, and no bound of service ids.
func TestSnapshotOfVersion1GetsIDsAndDefaults(t *testing.T) {
	now := string(snap(t, do(t, threeNodes(t), PutService{Service: Service{Name: "a", VIP: addr("10.0.0.100"), Port: 1, Endpoints: []Endpoint{endpoint("10.1.0.9:1", 1)}}})))
	old := strings.NewReplacer(
		`{"v":2,`, `{"v":1,`, `"next_service":3,"next_endpoint":4,`, `"next_service":70001,`,
		`{"id":1,"address"`, `{"address"`, `{"id":2,"address"`, `{"address"`, `{"id":3,"address"`, `{"address"`,
		`"name":"a","id":2,`, `"name":"a","id":70000,`,
		`"affinity":"none",`, ``, `"idle_reset":false,"on_remove":"reset","on_full":"drop","new_flow_rate":50000,`, ``,
	).Replace(now)
	for _, gone := range []string{`"id":2`, `"id":3`, "affinity", "on_", "rate", "next_endpoint"} {
		if strings.Contains(old, gone) {
			t.Fatalf("%s is still in %s", gone, old)
		}
	}
	s, err := Restore([]byte(old))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Restore([]byte(old))
	if err != nil || string(snap(t, s)) != string(snap(t, again)) {
		t.Fatalf("two restores differ (%v)", err)
	}
	a, _ := s.Service("a")
	web, _ := s.Service("web")
	if a.ID != 2 || web.ID != 1 || a.Endpoints[0].ID != 1 || web.Endpoints[0].ID != 2 || web.Endpoints[1].ID != 3 {
		t.Errorf("ids %+v and %+v", a, web)
	}
	if web.Affinity != AffinityNone || web.OnRemove != RemoveReset || web.OnFull != FullDrop || web.NewFlowRate != DefaultNewFlowRate {
		t.Errorf("defaults %+v", web)
	}
	s = do(t, s, on("10.0.0.100", "10.1.0.7:1", nil))
	if x, _ := s.Service("x"); x.ID != 3 || x.Endpoints[0].ID != 4 {
		t.Errorf("the next ids are %d and %d", x.ID, x.Endpoints[0].ID)
	}
}

func TestNoMoreEndpointsThanIDs(t *testing.T) {
	if testing.Short() {
		t.Skip("many services")
	}
	s := twoFamilies(t)
	var cmds []Command
	left := MaxID - 2 // web has two
	for i := 0; left > 0; i++ {
		n := min(left, MaxEndpoints)
		cmds = append(cmds, PutService{Service: Service{Name: "s" + strings.Repeat("x", i%8) + string(rune('a'+i/8%26)) + string(rune('a'+i/8/26)), VIP: addr("10.0.0.101"), Port: uint16(i + 1), Endpoints: manyEndpoints(n)}})
		left -= n
	}
	s = do(t, s, Batch{Commands: cmds})
	if s.endpointIDs.room() != 0 {
		t.Fatalf("there is room for %d more", s.endpointIDs.room())
	}
	refused(t, s, on("2001:db8::100", "10.1.0.7:1", nil), ErrInUse, "the cluster has 65535, of at most 65535")
	// What replaces an endpoint gets its id, since there is no other.
	web := webService()
	web.Endpoints[0].Address = addrPort("10.1.0.3:8080")
	if svc, _ := do(t, s, PutService{Service: web}).Service("web"); svc.Endpoints[1].ID != 2 {
		t.Errorf("endpoints %+v", svc.Endpoints)
	}
	back, err := Restore(snap(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if err := back.Check(on("2001:db8::100", "10.1.0.7:1", nil)); !errors.Is(err, ErrInUse) {
		t.Errorf("after a restore: %v", err)
	}
}
