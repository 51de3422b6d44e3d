package fsm

import (
	"bytes"
	stdcmp "cmp"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// allCommands has one filled-in value of each command.
func allCommands() []Command {
	join := joining(lbNode("lb2", 2))
	svc := normalService(webService())
	svc.PortEnd, svc.Affinity, svc.AffinityTimeout, svc.IdleReset = 81, AffinityClientIP, MinAffinityTimeout, true
	svc.OnRemove, svc.OnFull, svc.DrainTimeout = RemoveKeep, FullReset, MinDrainTimeout
	svc.Replicate, svc.ReplicateMinAge = ReplicateEstablished, MaxReplicateMinAge
	svc.Probe, svc.OnDown, svc.AllDown, svc.SlowStart = fullProbe(), DownMove, AllDownClosed, MinSlowStart
	svc.Endpoints[1].Admin, svc.Endpoints[1].DrainUntil = AdminDrain, epoch0
	cmds := []Command{
		initCluster(), join[0],
		RevokeToken{ID: "abc"},
		join[1],
		SetVoter{Node: "lb2"},
		RemoveNode{Node: "lb2", Force: true},
		RecoverCluster{Survivor: "lb2", GossipKey: bytes.Repeat([]byte{7}, 32)},
		NodeVerdict{Node: "lb2", Alive: true, Reason: "gossip"},
		NodeReport{Node: "lb2", Ready: true, LinksUp: true, InSync: true},
		DrainNode{Node: "lb2", Draining: true},
		PutInstance{
			Name: "blue", Priorities: map[NodeID]int{"lb1": 3}, Kind: InstanceBackup, AnnouncePolicy: PolicyMasterOnly,
			NextHops: []netip.Addr{addr("10.0.0.1"), addr("2001:db8::1")}, ASPrepend: true, Communities: []Community{"65000:1", "65000:1:2"},
			Spread: true,
		},
		DeleteInstance{Name: "blue"},
		MoveInstance{Name: "default", To: "lb2"},
		PutVIP{VIP: VIP{Address: addr("10.0.0.1"), Kind: VIPGateway, Announce: AnnounceBGP, OnQuorumLoss: QuorumHold, OnNoEndpoint: NoEndpointKeep}},
		DeleteVIP{Address: addr("10.0.0.1")},
		PutService{Service: svc, Create: true},
		PutService{Service: normalService(Service{Name: "v6", VIP: addr("2001:db8::1"), Port: 80, Protocol: SCTP, Mode: ModeDSR})},
		DeleteService{Name: "web"},
		SetEndpointAdmin{Service: "web", Endpoint: addrPort("10.1.0.1:8080"), Admin: AdminDrain, Until: epoch0},
		RecordFailover{Failover: failover(3)},
		SetHealth{Instance: "default", Node: "lb1", Epoch: 4, Verdicts: []Verdict{
			{Endpoint: 7, Health: HealthDown, Since: epoch0, Why: "connection refused", Flapping: true, Question: 9}, {Endpoint: 8, Health: HealthUp, Since: epoch0, Share: 10},
		}},
		PutBGP{BGP: BGP{
			AS: 65001, RestartTime: MinRestartTime, Nodes: []BGPNode{{Node: "lb1", AS: 65002, RouterID: addr("192.0.2.7")}, {Node: "lb2", AS: 1}},
			Import: []ImportRule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), MinLen: 9, MaxLen: 24}}, MaxImport: 7,
		}},
		PutBGPPeer{Peer: fullPeer()},
		DeleteBGPPeer{Address: addr("192.0.2.254"), Node: "lb1"},
		PutService{Service: normalService(Service{Name: "auto", Port: 80}), Auto: &AutoVIP{Pool: "p", Share: "x"}},
		PutPool{Pool: Pool{
			Name: "p", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24")}, Ranges: []AddressRange{{addr("10.4.0.1"), addr("10.4.0.9")}},
			AllAddresses: true, Instance: "blue", Announce: AnnounceBGP, Interface: "eth1", Default: true,
			Reservations: []Reservation{{addr("10.4.0.1"), ""}, {addr("10.4.0.2"), "web"}},
		}, KeepReservations: true},
		DeletePool{Name: "p"},
		ReserveAddress{Address: addr("10.4.0.3"), Service: "web"},
		UnreserveAddress{Address: addr("10.4.0.3")},
	}
	return append(cmds, Batch{Commands: append([]Command{}, cmds...)})
}

func sameValues() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
		cmp.Comparer(func(a, b Replicate) bool {
			return stdcmp.Or(a, ReplicateEstablished) == stdcmp.Or(b, ReplicateEstablished)
		}),
		cmp.Comparer(func(a, b ProbeType) bool { return stdcmp.Or(a, ProbeNone) == stdcmp.Or(b, ProbeNone) }),
		cmp.Comparer(func(a, b DownPolicy) bool { return stdcmp.Or(a, DownKeep) == stdcmp.Or(b, DownKeep) }),
		cmp.Comparer(func(a, b AllDown) bool { return stdcmp.Or(a, AllDownOpen) == stdcmp.Or(b, AllDownOpen) }),
	}
}

func TestEveryCommandSurvivesTheLog(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range allCommands() {
		b, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("decode %s: %v", b, err)
		}
		if diff := cmp.Diff(c, got, sameValues()); diff != "" {
			t.Errorf("%s: %s", Kind(c), diff)
		}
		if seen[Kind(c)] && Kind(c) != "put_service" { // one of each family
			t.Errorf("two commands are called %s", Kind(c))
		}
		seen[Kind(c)] = true
	}
}

func TestLogFormat(t *testing.T) {
	b, err := Encode(SetVoter{Node: "lb2"})
	if want := `{"v":2,"type":"set_voter","data":{"node":"lb2"}}`; err != nil || string(b) != want {
		t.Errorf("%s (%v), want %s", b, err, want)
	}
}

// A node that knows nothing of a setting must go on reading the log and the
// snapshots of newer nodes until the setting is used.
func TestWhatIsWrittenIsAsOldAsItCanBe(t *testing.T) {
	put := func(change func(*Service)) PutService {
		svc := webService()
		change(&svc)
		return PutService{Service: svc}
	}
	plain := put(func(s *Service) { s.Replicate = ReplicateEstablished })
	for name, r := range map[string]struct {
		c    PutService
		want int
	}{
		"nothing said":  {put(func(*Service) {}), 2},
		"the default":   {plain, 2},
		"nothing":       {put(func(s *Service) { s.Replicate = ReplicateNone }), 3},
		"after a while": {put(func(s *Service) { s.ReplicateMinAge = Duration(time.Second) }), 3},
	} {
		b, err := Encode(r.c)
		if err != nil || peekVersion(b) != r.want || r.want == 2 && strings.Contains(string(b), "replicate") {
			t.Errorf("%s: %s (%v), want version %d", name, b, err, r.want)
		}
		s := do(t, threeNodes(t), r.c)
		bytes := snap(t, s)
		if peekVersion(bytes) != r.want || r.want == 2 && strings.Contains(string(bytes), "replicate") {
			t.Errorf("%s: snapshot %s, want version %d", name, bytes, r.want)
		}
		back, err := Restore(bytes)
		if err != nil {
			t.Fatal(err)
		}
		was, _ := s.Service("web")
		if is, _ := back.Service("web"); is.Replicate != was.Replicate || was.Replicate == "" || is.ReplicateMinAge != was.ReplicateMinAge {
			t.Errorf("%s: %+v became %+v", name, was, is)
		}
	}
	batch, err := Encode(Batch{Commands: []Command{plain, put(func(s *Service) { s.Replicate = ReplicateAll })}})
	if err != nil || !strings.HasPrefix(string(batch), `{"v":2,`) || strings.Count(string(batch), `"v":3`) != 1 {
		t.Errorf("batch %s (%v)", batch, err)
	}
}

func TestVIPIsWrittenAsOldAsItCanBe(t *testing.T) {
	for loss, want := range map[QuorumLoss]int{"": 2, QuorumRelease: 2, QuorumHold: 4} {
		c := PutVIP{VIP: VIP{Address: addr("10.0.0.9"), OnQuorumLoss: loss}}
		b, err := Encode(c)
		if err != nil || peekVersion(b) != want || want == 2 && strings.Contains(string(b), "quorum") {
			t.Errorf("%q: %s (%v), want version %d", loss, b, err, want)
		}
		bytes := snap(t, do(t, threeNodes(t), c))
		if peekVersion(bytes) != want || want == 2 && strings.Contains(string(bytes), "quorum") {
			t.Errorf("%q: snapshot %s, want version %d", loss, bytes, want)
		}
		back, err := Restore(bytes)
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := back.VIP(addr("10.0.0.9")); v.OnQuorumLoss != stdcmp.Or(loss, QuorumRelease) {
			t.Errorf("%q became %q", loss, v.OnQuorumLoss)
		}
	}
}

func TestDecodeRefusals(t *testing.T) {
	for _, r := range []struct {
		in    string
		kind  error
		words string
	}{
		{``, ErrInvalid, "decode command"},
		{`null`, ErrInvalid, "version 0"},
		{`{"v":1,"type":"set_voter","data":{"node":"a"}} x`, ErrInvalid, ""},
		{`{"v":1,"type":"set_voter"}`, ErrInvalid, "set_voter"},
		{`{"v":1,"type":"set_voter","data":{"nod":"a"}}`, ErrInvalid, "nod"},
		{`{"v":99,"type":"set_voter","data":{}}`, ErrUnsupported, "version 99"},
		{`{"v":99,"kind":"x"}`, ErrUnsupported, "version 99"},
		{`{"v":1,"kind":"x"}`, ErrInvalid, "kind"},
		{`{"v":1,"type":"fly","data":{}}`, ErrUnsupported, "fly"},
		{`{"v":1,"type":"put_service","data":{"service":{"endpoints":[{"wait":1}]},"create":true}}`, ErrInvalid, "wait"},
		{`{"v":1,"type":"batch","data":{"commands":[{"v":1,"type":"batch","data":{"commands":[]}}]}}`, ErrInvalid, "inside"},
		{`{"v":1,"type":"batch","data":{"commands":[{"v":99,"type":"x","data":{}}]}}`, ErrUnsupported, "version 99"},
	} {
		_, err := Decode([]byte(r.in))
		if !errors.Is(err, r.kind) || !strings.Contains(err.Error(), r.words) {
			t.Errorf("decode %s: %v", r.in, err)
		}
	}
	if _, err := Encode(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("encode nothing: %v", err)
	}
	if _, err := Encode(Batch{Commands: []Command{nil}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("encode a batch with nothing in it: %v", err)
	}
}

func TestAbsentWeightIsOneAndZeroStaysZero(t *testing.T) {
	var es []Endpoint
	if err := json.Unmarshal([]byte(`[{"address":"10.0.0.1:80"},{"address":"10.0.0.1:81","weight":0}]`), &es); err != nil {
		t.Fatal(err)
	}
	if es[0].Weight != 1 || es[1].Weight != 0 {
		t.Errorf("weights %d and %d", es[0].Weight, es[1].Weight)
	}
}

func TestDurationIsText(t *testing.T) {
	var v struct{ D Duration }
	if err := json.Unmarshal([]byte(`{"D":"90s"}`), &v); err != nil || v.D != Duration(90*time.Second) {
		t.Errorf("%v %v", v, err)
	}
	if b, err := json.Marshal(v); err != nil || string(b) != `{"D":"1m30s"}` {
		t.Errorf("%s %v", b, err)
	}
	for _, bad := range []string{`{"D":"90"}`, `{"D":90}`, `{"D":""}`} {
		if err := json.Unmarshal([]byte(bad), &v); err == nil {
			t.Errorf("%s is read as %s", bad, v.D)
		}
	}
}

func TestRestoreRefusals(t *testing.T) {
	good := string(snap(t, threeNodes(t)))
	for _, r := range []struct {
		from, to string
		kind     error
	}{
		{`{"v":2,`, `{"v":99,"new":true,`, ErrUnsupported},
		{`{"v":2,`, `{"v":0,`, ErrInvalid},
		{`{"v":2,`, `{"v":2,"new":true,`, ErrInvalid},
		{`{"v":2,`, `{`, ErrInvalid},
		{`"name":"lb2"`, `"name":"lb1"`, ErrInvalid},
		{`"key":"`, `"key":"AAAA`, ErrInvalid},
		{`"name":"default"`, `"name":"other"`, ErrInvalid},
		{`"master":"lb`, `"master":"xx`, ErrInvalid},
		{`"name":"web","id":1,`, `"name":"web","id":0,`, ErrInvalid},
		{`"name":"web","id":1,`, `"name":"web","id":65536,`, ErrInvalid},
		{`{"id":2,"address":"10.1.0.2:8080"`, `{"id":1,"address":"10.1.0.2:8080"`, ErrInvalid},
		{`{"id":2,"address":"10.1.0.2:8080"`, `{"address":"10.1.0.2:8080"`, ErrInvalid},
		{`"port":80,`, `"port":80,"port_end":79,`, ErrInvalid},
		{`"vips":[{"address":"10.0.0.100"`, `"vips":[{"address":"10.0.0.101"`, ErrInvalid},
		{`"next_service":2`, `"next_service":0`, ErrInvalid},
		{`"next_endpoint":3`, `"next_endpoint":65536`, ErrInvalid},
		{`10.1.0.2:8080`, `10.1.0.0:8080`, ErrInvalid},
	} {
		bad := strings.Replace(good, r.from, r.to, 1)
		if bad == good {
			t.Fatalf("%s is not in %s", r.from, good)
		}
		if _, err := Restore([]byte(bad)); !errors.Is(err, r.kind) {
			t.Errorf("with %s: %v", r.to, err)
		}
	}
	for _, cut := range []int{0, 1, len(good) / 2, len(good) - 1} {
		if _, err := Restore([]byte(good[:cut])); !errors.Is(err, ErrInvalid) {
			t.Errorf("first %d bytes: %v", cut, err)
		}
	}
}
