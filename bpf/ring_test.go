package bpf

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A reader that the kernel wakes for each record costs more than the connections that the records
// are about. Each record comes alone here, so that nothing but the reader's rest joins them.
func TestReaderOfTheRingIsNotWokenForEachRecord(t *testing.T) {
	const records, every = 2048, 200 * time.Microsecond
	b := newBench(t, func(o *Options) { o.MaxFlows = 4096 })
	b.ns.Do(func() { b.ns.Sysctl("net/ipv4/conf/lo/forwarding", "1") })
	s := service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80))
	s.Protocol = protoUDP
	b.sync(s)
	frames := make([][]byte, records)
	for i := range frames {
		frames[i] = loopFrame(benchClient(i), vipPort, 0)
		frames[i][23] = protoUDP
		frames[i][24], frames[i][25] = 0, 0
		sum := headerSum(frames[i][14:34])
		frames[i][24], frames[i][25] = byte(sum>>8), byte(sum)
		frames[i][38], frames[i][39] = 0, frameSize-14-20
	}
	r := newReplayer(t, frames)
	r.measure(t, b, b.programs.entry, records, actRedirect) // half-open: no records
	if err := r.state.Put(uint32(0), uint32(0)); err != nil {
		t.Fatal(err)
	}
	runDataplane(t, b.Dataplane)
	came := make(chan int)
	go func() {
		n := 0
		for n < records {
			n += len(<-b.Events()) / RecordSize
		}
		came <- n
	}()
	var before, after unix.Rusage
	var took time.Duration
	var err error
	b.ns.Do(func() {
		if err = unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
			return
		}
		start := time.Now()
		defer func() { took = time.Since(start) }()
		for i := range records {
			for time.Since(start) < time.Duration(i)*every { // no timer is that fine
			}
			if _, err = r.program.Run(&ebpf.RunOptions{Data: r.input, DataOut: make([]byte, frameSize+64)}); err != nil {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	<-came
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		t.Fatal(err)
	}
	slept := after.Nvcsw - before.Nvcsw
	t.Logf("%d records in %s, the process slept %d times", records, took, slept)
	// Where records come slower than batches are cut, each wakes the reader by right.
	if slept > records/2 && took < 4*records*every {
		t.Errorf("the process slept %d times for %d records", slept, records)
	}
}
