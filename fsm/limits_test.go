package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func TestMoreThanTheDataPlaneHoldsIsRefused(t *testing.T) {
	s := do(t, New(), initCluster())
	var vips, services []Command
	for i := range MaxVIPs {
		a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		vips = append(vips, PutVIP{VIP: VIP{Address: a}})
		if i < MaxServices {
			services = append(services, PutService{Service: Service{Name: fmt.Sprintf("s%d", i), VIP: a, Port: 80}})
		}
	}
	s = do(t, s, Batch{Commands: vips})
	s = do(t, s, Batch{Commands: services})
	first := netip.MustParseAddr("198.18.0.0")
	for name, c := range map[string]Command{
		"vip":     PutVIP{VIP: VIP{Address: netip.MustParseAddr("198.19.255.1")}},
		"service": PutService{Service: Service{Name: "more", VIP: first, Port: 81}},
	} {
		if err := s.Check(c); !errors.Is(err, ErrInUse) {
			t.Errorf("%s beyond the limit: %v", name, err)
		}
	}
	if err := s.Check(PutService{Service: Service{Name: "s0", VIP: first, Port: 82}}); err != nil {
		t.Errorf("changing one of a full table: %v", err)
	}
}
