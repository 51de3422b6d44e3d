package bpf

import (
	"testing"

	"pontoon/bpf/bpftest"
)

// What the benchmarks of replication are fed by makes whole connections, and knows how many.
func TestGeneratorMakesEstablishedConnections(t *testing.T) {
	const connections = 3000
	for _, mode := range []Mode{ModeDNAT, ModeFullNAT} {
		b := newBench(t, func(o *Options) { o.MaxFlows = 1 << 13 })
		b.in.Route(bpftest.GeneratorClients.String(), client.String(), 0)
		b.sync(service(mode, endpoint1, endpoint2))
		var injector *bpftest.Injector
		var err error
		b.ns.Do(func() { injector, err = bpftest.NewInjector(b.opts.PinDir, "eth1") })
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = injector.Close() }()
		g, err := bpftest.NewGenerator(injector, vipPort)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = g.Close() }()
		b.ns.Do(func() {
			b.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1")
			_, err = g.Make(connections)
		})
		if err != nil {
			t.Fatalf("%v: %v; %d opened, %d made; drops %v", mode, err, g.Opened(), g.Made(), b.Stats().Drops)
		}
		established := uint64(0)
		for _, f := range b.flows() {
			if f.State == StateEstablished && bpftest.GeneratorClients.Contains(f.Client.Addr()) {
				established++
			}
		}
		// A signal may have made the kernel begin again, and left one connection half-open each time.
		if g.Made() < connections || g.Made() > g.Opened() || established != g.Made() {
			t.Errorf("%v: %d opened, %d made, %d established; drops %v", mode, g.Opened(), g.Made(), established, b.Stats().Drops)
		}
	}
}
