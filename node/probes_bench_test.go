package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/node/health"
)

// BenchmarkJudging is what one round costs a prober of 10 000 endpoints, apart from committing.
func BenchmarkJudging(b *testing.B) {
	s := fsm.New()
	do := func(c fsm.Command) {
		b.Helper()
		var err error
		if s, err = s.Apply(s.Index()+1, c); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true}, fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}) {
		do(c)
	}
	for i := range 40 {
		put := webOn(fmt.Sprintf("s%d", i), "192.0.2.100")
		put.Service.Port, put.Service.Probe.Interval = uint16(1000+i), fsm.Duration(time.Hour)
		for j := range 250 {
			put.Service.Endpoints = append(put.Service.Endpoints, fsm.Endpoint{Address: socket(fmt.Sprintf("198.51.100.%d:%d", j, 1000+i)), Weight: 1})
		}
		do(put)
	}
	node, epoch := s.Prober(fsm.DefaultInstance)
	set := fsm.SetHealth{Instance: fsm.DefaultInstance, Node: node, Epoch: epoch}
	factors := probeFactors(s, "lb1")
	targets, _ := probeTargets(s, factors)
	for i, t := range targets {
		// What is known has an hour for its first probe, so that none is sent here.
		targets[i].Start = health.Up
		set.Verdicts = append(set.Verdicts, fsm.Verdict{Endpoint: t.Key, Health: fsm.HealthUp, Since: noon})
	}
	do(set)
	p := &probing{prober: health.New(health.Options{Rate: 1})}
	ctx, cancel := context.WithCancel(b.Context())
	var g errgroup.Group
	g.Go(func() error { return p.prober.Run(ctx) })
	p.prober.Want(targets)
	for tick := time.Tick(time.Millisecond); !p.prober.Settled(); {
		<-tick
	}
	b.ReportAllocs()
	for b.Loop() {
		all := findings(s, factors, p.results(), nil)
		next, held, _ := suspicion{}.step(all, "", true, noon)
		if due, _ := dueVerdicts(all, held, noon); len(due) > 0 || next.asking || len(all) != len(targets) {
			b.Fatalf("%d findings, due: %v", len(all), due)
		}
	}
	cancel()
	if err := g.Wait(); err != nil {
		b.Error(err)
	}
}
