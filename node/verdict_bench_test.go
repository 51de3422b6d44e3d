package node

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
	"pontoon/fsm"
)

// BenchmarkVerdictsReachTheDataPlane is what a node does from the moment its state machine has a batch of verdicts until no packet of
// a new flow goes to the dead: one of the four endpoints of each of so many services has died.
func BenchmarkVerdictsReachTheDataPlane(b *testing.B) {
	bpftest.RequirePrivilege(b)
	for _, services := range []int{1, 500, 2000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) { benchVerdicts(b, services) })
	}
}

func benchVerdicts(b *testing.B, services int) {
	d := newTakeUp(b)
	well := mourning(b, services)
	carry := func(s *fsm.State) time.Duration { return timedTurn(b, d, s) }
	carry(well)
	var all []time.Duration
	for b.Loop() {
		if len(all)%6 == 5 { // blocks of tables are used again after two seconds only, and there are not so many
			b.StopTimer()
			<-time.After(2100 * time.Millisecond)
			b.StartTimer()
		}
		dead := judged(b, well, fsm.HealthDown)
		all = append(all, carry(dead))
		carry(judged(b, dead, fsm.HealthUp))
	}
	slices.Sort(all)
	b.ReportMetric(millis(all[0]), "ms-least")
	b.ReportMetric(millis(all[len(all)/2]), "ms-median")
	b.ReportMetric(millis(all[len(all)*9/10]), "ms-p90")
}

// mourning is a state in which lb1 forwards for Maglev services of four endpoints, all of them up.
func mourning(tb testing.TB, services int) *fsm.State {
	tb.Helper()
	s := takeUpState(tb, false, 64)
	vips := s.VIPs()
	var cmds []fsm.Command
	for i := range services {
		svc := fsm.Service{
			Name: fmt.Sprintf("service-%05d", i), VIP: vips[i%len(vips)].Address, Port: uint16(1 + i/len(vips)), Algorithm: fsm.Maglev,
			Probe: fsm.Probe{Type: fsm.ProbeTCP},
		}
		for e := range 4 {
			at := netip.AddrFrom4([4]byte{10, 2, byte(1 + i%250), byte(1 + e)})
			svc.Endpoints = append(svc.Endpoints, fsm.Endpoint{Address: netip.AddrPortFrom(at, uint16(8080+i/250)), Weight: 1})
		}
		cmds = append(cmds, fsm.PutService{Service: svc})
	}
	next, err := s.Apply(s.Index()+1, fsm.Batch{Commands: cmds})
	if err != nil {
		tb.Fatal(err)
	}
	return judged(tb, next, fsm.HealthUp)
}

// judged is s with this health of the first endpoint of each service.
func judged(tb testing.TB, s *fsm.State, health fsm.Health) *fsm.State {
	tb.Helper()
	node, epoch := s.Prober(fsm.DefaultInstance)
	set := fsm.SetHealth{Instance: fsm.DefaultInstance, Node: node, Epoch: epoch}
	for _, svc := range s.Services() {
		set.Verdicts = append(set.Verdicts, fsm.Verdict{Endpoint: svc.Endpoints[0].ID, Health: health, Since: t0})
	}
	next, err := s.Apply(s.Index()+1, set)
	if err != nil {
		tb.Fatal(err)
	}
	return next
}
