package fsm

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// lowestByLooking is what lowestFree finds, by the rule itself: each address in turn, and everybody asked whether it is theirs.
func lowestByLooking(s *State, p Pool, svc Service) netip.Addr {
	free := func(a netip.Addr) bool {
		return !s.vips.has(a) && s.occupant(a) == "" && !hasEndpointAt(svc.Endpoints, a)
	}
	for _, r := range p.Reservations {
		if svc.Name != "" && r.Service == svc.Name && free(r.Address) {
			return r.Address
		}
	}
	for _, r := range p.handsOut() {
		for a := r.First; r.Contains(a); a = a.Next() {
			if _, kept := p.reservation(a); !kept && free(a) {
				return a
			}
		}
	}
	return netip.Addr{}
}

func TestLowestFreeIsTheSameByLookingAtEachAddress(t *testing.T) {
	found, full := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		log := []Command{InitCluster{Cluster: testCluster(), Node: lbNode("a", 1)}}
		log = append(log, rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Command {
			if dice(t, "kind", 3) == 0 {
				return genSingle(t)
			}
			return genPool(t)
		}), 40, 90).Draw(t, "log")...)
		for _, c := range log {
			s, _ = s.Apply(s.Index()+1, c) // many are refused
		}
		svc := normalService(genService(t)) // as Apply has it: sorted
		d := &draft{State: *s}
		for _, p := range s.Pools() {
			got, want := d.lowestFree(&p, svc), lowestByLooking(s, p, svc)
			if got != want {
				t.Fatalf("%s gets %s of %+v, want %s", svc.Name, got, p, want)
			}
			if got.IsValid() {
				found++
			} else {
				full++
			}
		}
	})
	t.Logf("%d addresses found, %d pools without one", found, full)
	if found == 0 || full == 0 {
		t.Errorf("%d addresses were found and %d pools were full: too few to tell anything", found, full)
	}
}

// An address of a /16 pool beside 5000 services whose 20 000 endpoints lie in its way, which is where everybody was asked about
// each address.
func BenchmarkHandOutAmongEndpoints(b *testing.B) {
	s := do(b, threeNodes(b), PutPool{Pool: Pool{Name: "p", CIDRs: []netip.Prefix{prefix("10.8.0.0/16")}}})
	at := addr("10.8.0.1")
	var cmds []Command
	for i := range 5000 {
		var es []Endpoint
		for range 4 {
			es = append(es, Endpoint{Address: netip.AddrPortFrom(at, 80), Weight: 1})
			at = at.Next()
		}
		cmds = append(cmds, PutService{Service: Service{Name: fmt.Sprintf("s%d", i), VIP: addr("10.0.0.100"), Port: uint16(1000 + i), Endpoints: es}})
	}
	s = do(b, s, Batch{Commands: cmds})
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(auto("one", "p")); err != nil {
			b.Fatal(err)
		}
	}
}
