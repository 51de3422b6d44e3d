package bpf

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

func TestSyncIsIdempotent(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1, endpoint2)
	b.sync(s)
	first := b.tables.services[serviceKey(s)]
	for range 5 {
		b.sync(s)
	}
	if again := b.tables.services[serviceKey(s)]; again.value != first.value {
		t.Errorf("%+v became %+v", first.value, again.value)
	}
	if n := len(b.tables.blocks.used); n != 1 {
		t.Errorf("%d blocks in use", n)
	}
}

func TestReplacedTablesAndEndpointsAreUsedAgain(t *testing.T) {
	b := newBench(t, nil)
	for i := range 50 {
		s := service(ModeFullNAT, endpoint1, netip.AddrPortFrom(endpoint2.Addr(), uint16(9000+i)))
		s.Endpoints[0].Weight = uint16(2 + i)
		b.sync(s)
	}
	later := time.Now().Add(2 * blockGrace)
	b.tables.blocks.reclaim(later)
	if n := len(b.tables.blocks.used); n != 1 {
		t.Errorf("%d blocks in use for one service", n)
	}
	if n := len(b.tables.endpoints); n != 2 {
		t.Errorf("%d endpoint entries in use for two endpoints", n)
	}
	if n := len(b.tables.sources.lists); n != 1 {
		t.Errorf("%d lists of sources in use for one", n)
	}
}

func TestSyncRemovesWhatIsNotWanted(t *testing.T) {
	b := newBench(t, nil)
	one, two := service(ModeFullNAT, endpoint1), service(ModeDNAT, endpoint2)
	two.ID, two.VIP = 8, netip.AddrPortFrom(vip, 81)
	b.sync(one, two)
	snat, _ := b.talk(clientPort, two.VIP)
	if err := b.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip}, Services: numbered(one)}); err != nil {
		t.Fatal(err)
	}
	if n := len(b.tables.endpoints); n != 1 {
		t.Errorf("%d endpoint entries in use for one endpoint", n)
	}
	// The connection goes on; a new one is refused.
	if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint2, Dst: snat, Flags: bpftest.ACK}); action != actRedirect {
		t.Errorf("flow of the service that is gone: action %d", action)
	}
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 40001), Dst: two.VIP, Flags: bpftest.SYN})
	if n := b.Stats().Counters["refused"]; n != 1 {
		t.Errorf("refused %d", n)
	}
	if err := b.Sync(context.Background(), Desired{}); err != nil {
		t.Fatal(err)
	}
	action, _ := b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 40002), Dst: vipPort, Flags: bpftest.SYN})
	if action != actPass {
		t.Errorf("packet to an address that is no VIP any more: action %d", action)
	}
}

func TestSyncRefusesWhatIsWrongAndChangesNothing(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	bad := service(ModeFullNAT, endpoint1)
	bad.Protocol = 99
	if err := b.Sync(context.Background(), Desired{Services: numbered(bad)}); err == nil {
		t.Error("accepted")
	}
	b.talk(clientPort, vipPort)
}

// Selection tables change while packets come in; each goes to an endpoint of the old or the new
// table, and none is lost.
func TestNoPacketSeesAHalfBuiltTable(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.Algorithm = AlgorithmMaglev
	b.sync(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			change := s
			change.Seed = uint32(i)
			change.Endpoints = service(ModeFullNAT, endpoint1, endpoint2).Endpoints[:1+i%2]
			if err := b.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip}, Services: numbered(change)}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := range 3000 {
		c := netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 5000)
		action, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN})
		if _, dst := tuple(out); action != actRedirect || (dst != endpoint1 && dst != endpoint2) {
			t.Fatalf("SYN %d: action %d to %s, drops %v", i, action, dst, b.Stats().Drops)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A service whose new table finds no room goes on with the old one, so the endpoints that it names
// are not emptied under the packets that read it.
func TestEndpointsOfAnOldTableStayUntilTheNewOneIsThere(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	var old uint16
	for id := range b.tables.endpoints {
		old = id
	}
	size := b.tables.blocks.size
	b.tables.blocks.size = 1 // all is in use
	want := Desired{VIPs: []netip.Addr{vip}, Services: numbered(service(ModeFullNAT, endpoint1, endpoint2))}
	want.Services[0].Endpoints = want.Services[0].Endpoints[1:]
	if err := b.Sync(context.Background(), want); err == nil {
		t.Fatal("a table was installed for which there is no room")
	}
	var wanted idSet
	wanted.add(want.Services[0].Endpoints[0].ID)
	now := time.Now()
	empty := func(after time.Duration) bool {
		if err := b.tables.removeEndpoints(&wanted, now.Add(after)); err != nil {
			t.Fatal(err)
		}
		var value pontoonEndpoint
		if err := b.maps.Endpoints.Lookup(uint32(old), &value); err != nil {
			t.Fatal(err)
		}
		return value.Service == 0
	}
	if empty(2*blockGrace) || empty(4*blockGrace) {
		t.Error("emptied while the table names it")
	}
	b.tables.blocks.size = size
	if err := b.Sync(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	if empty(4*blockGrace + blockGrace/2) {
		t.Error("emptied while packets may have read the table")
	}
	if !empty(6 * blockGrace) {
		t.Error("stays for ever")
	}
}

// One batch of changes has services of every kind; what there is no room for keeps its old table, and none of the others out.
func TestAServiceThatDoesNotFitKeepsNoOtherOut(t *testing.T) {
	b := newBench(t, nil)
	var services []Service
	for i := range 3 {
		s := service(ModeFullNAT, endpoint1, endpoint2)
		s.ID, s.VIP = uint32(7+i), netip.AddrPortFrom(vip, uint16(80+i))
		services = append(services, s)
	}
	services[0].Algorithm, services[2].Algorithm = AlgorithmMaglev, AlgorithmLC
	b.sync(services...)
	size := b.tables.blocks.size
	b.tables.blocks.size = b.tables.blocks.used[len(b.tables.blocks.used)-1].end() + 4
	for i := range services {
		services[i].Endpoints[0].State = EndpointDead
	}
	want := Desired{VIPs: []netip.Addr{vip}, Services: numbered(services...)}
	err := b.Sync(context.Background(), want)
	if err == nil || strings.Count(err.Error(), "no room") != 1 || !strings.Contains(err.Error(), "service 7:") {
		t.Errorf("error %v, want that of service 7 alone", err)
	}
	port := uint16(3000)
	seen := func(s Service) map[netip.AddrPort]bool {
		to := map[netip.AddrPort]bool{}
		for range 40 {
			port++
			_, endpoint := b.choose(netip.AddrPortFrom(client, port), s.VIP)
			to[endpoint] = true
		}
		return to
	}
	for i, n := range []int{2, 1, 1} {
		if to := seen(services[i]); len(to) != n || !to[endpoint2] {
			t.Errorf("service %d leads to %v, want %d endpoints", services[i].ID, to, n)
		}
	}
	b.tables.blocks.size = size
	if err := b.Sync(context.Background(), want); err != nil {
		t.Fatal(err)
	}
	if to := seen(services[0]); len(to) != 1 || !to[endpoint2] {
		t.Errorf("with room again it leads to %v", to)
	}
}
