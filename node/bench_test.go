package node

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/plan"
)

// bigState is one node with services of four endpoints on 64 VIPs.
func bigState(tb testing.TB, services int) *fsm.State {
	tb.Helper()
	s := fsm.New()
	do := func(c fsm.Command) {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			tb.Fatal(err)
		}
		s = next
	}
	for _, c := range oneNode() {
		do(c)
	}
	do(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true})
	var cmds []fsm.Command
	for i := range 64 {
		cmds = append(cmds, fsm.PutVIP{VIP: fsm.VIP{Address: netip.AddrFrom4([4]byte{192, 168, 80, byte(100 + i)})}})
	}
	for i := range services {
		svc := fsm.Service{
			Name: fmt.Sprintf("service-%05d", i), VIP: netip.AddrFrom4([4]byte{192, 168, 80, byte(100 + i%64)}), Port: uint16(1 + i/64),
		}
		for e := range 4 {
			a := netip.AddrFrom4([4]byte{10, 2, byte(i % 250), byte(1 + e)})
			svc.Endpoints = append(svc.Endpoints, fsm.Endpoint{Address: netip.AddrPortFrom(a, 8080), Weight: 1})
		}
		cmds = append(cmds, fsm.PutService{Service: svc})
	}
	do(fsm.Batch{Commands: cmds})
	return s
}

var benchSelf = plan.Self{Node: "lb1", Links: []plan.Link{
	{Name: "eth1", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.80.11/24")}},
	{Name: "eth2", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.2.0.11/16")}},
}}

// BenchmarkPlanOfAVerdict is what stands between a verdict and the addresses:
// nothing configured changed, somebody's mastership did.
func BenchmarkPlanOfAVerdict(b *testing.B) {
	s := bigState(b, 10000)
	next, err := s.Apply(s.Index()+1, fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true})
	if err != nil {
		b.Fatal(err)
	}
	services := plan.CompileServices(s, benchSelf)
	if !fsm.SharesConfig(s, next) {
		b.Fatal("a report changed the configuration")
	}
	for b.Loop() {
		services.Plan(next, benchSelf)
	}
}

func BenchmarkPlanOfAChange(b *testing.B) {
	s := bigState(b, 10000)
	for b.Loop() {
		plan.Compile(s, benchSelf)
	}
}

func BenchmarkEventsOfAReport(b *testing.B) {
	s := bigState(b, 10000)
	next, err := s.Apply(s.Index()+1, fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		stateEvents(s, next)
	}
}

// BenchmarkCompareDataplane is the regular look at the kernel's maps while
// nothing changed.
func BenchmarkCompareDataplane(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := fmt.Sprintf("/sys/fs/bpf/ptnodebench%d", os.Getpid())
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	dp, err := bpf.Open(bpf.Options{PinDir: dir, MaxFlows: 4096, MaxHalfOpen: 4096})
	if err != nil {
		b.Fatal(err)
	}
	defer dp.Close()
	p := plan.Compile(bigState(b, 4000), benchSelf)
	if err := dp.Sync(b.Context(), p.Dataplane); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := dp.Sync(b.Context(), p.Dataplane); err != nil {
			b.Fatal(err)
		}
	}
}
