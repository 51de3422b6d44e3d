package fsm

import (
	"fmt"
	"net/netip"
	"testing"
)

// bigState has n services of the given number of endpoints, on 64 VIPs. The
// services share their endpoints, which the state never writes to.
func bigState(b *testing.B, n, endpoints int) *State {
	b.Helper()
	s := threeNodes(b)
	var cmds []Command
	for i := range 64 {
		cmds = append(cmds, PutVIP{VIP: VIP{Address: netip.AddrFrom4([4]byte{10, 50, 0, byte(i)})}})
	}
	es := manyEndpoints(endpoints)
	for i := range n {
		cmds = append(cmds, PutService{Service: Service{
			Name: fmt.Sprintf("service-%05d", i), VIP: netip.AddrFrom4([4]byte{10, 50, 0, byte(i % 64)}),
			Port: uint16(1 + i/64), Endpoints: es,
		}})
	}
	return do(b, s, Batch{Commands: cmds})
}

func BenchmarkApplyPutService(b *testing.B) {
	for _, size := range []struct{ services, endpoints int }{{10000, 4}, {200, 256}} { // MaxID bounds the product
		b.Run(fmt.Sprintf("services=%d/endpoints=%d", size.services, size.endpoints), func(b *testing.B) {
			s := bigState(b, size.services, size.endpoints)
			svc, _ := s.Service("service-00100")
			b.ReportAllocs()
			for b.Loop() {
				s = do(b, s, PutService{Service: svc})
			}
		})
	}
}

func BenchmarkApplyCreateAndDeleteService(b *testing.B) {
	s := bigState(b, 10000, 4)
	svc, _ := s.Service("service-05000")
	svc.Name, svc.Port = "service-05000x", 9999
	b.ReportAllocs()
	for b.Loop() {
		s = do(b, s, PutService{Service: svc}, DeleteService{Name: svc.Name})
	}
}

func BenchmarkApplyNodeVerdict(b *testing.B) {
	s := bigState(b, 10000, 4)
	b.ReportAllocs()
	for b.Loop() {
		s = do(b, s, NodeVerdict{Node: "lb1"}, NodeVerdict{Node: "lb1", Alive: true})
	}
}

func BenchmarkApplyPutVIP(b *testing.B) {
	s := bigState(b, 10000, 4)
	at := addr("10.60.0.1")
	b.ReportAllocs()
	for b.Loop() {
		s = do(b, s, PutVIP{VIP: VIP{Address: at}}, DeleteVIP{Address: at})
	}
}

func BenchmarkApplyBatchOf10000Services(b *testing.B) {
	for b.Loop() {
		bigState(b, 10000, 4)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	s := bigState(b, 10000, 4)
	b.SetBytes(int64(len(snap(b, s))))
	b.ReportAllocs()
	for b.Loop() {
		snap(b, s)
	}
}

func BenchmarkRestore(b *testing.B) {
	raw := snap(b, bigState(b, 10000, 4))
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Restore(raw); err != nil {
			b.Fatal(err)
		}
	}
}
