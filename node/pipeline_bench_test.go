package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pontoon/bpf/bpftest"
)

// Run with GODEBUG=asyncpreemptoff=1: Go's preemption signal ends runs of the generator.

// pipelineSeconds is how long a run at a rate takes; one at full speed makes as many
// connections as fit the tables.
const pipelineSeconds = 5

// BenchmarkReplicationPipeline makes connections in the data plane of one node, at a
// rate and as fast as one processor can, and follows them into the flow tables of one
// and two others, over mutual TLS. All nodes are this process, without Raft and API.
//
//   - flows/s-made, flows/s-arrived: until the last was made, and until every peer held
//     it; of all that were made, missing had not come a minute later;
//   - ms-lag: from publication to acknowledgement, as status says; ms-there: from when a
//     piece (a millisecond's, or 1000 connections) was made to when the last peer's table
//     held all of it, looked at twice a millisecond;
//   - maker-ns/flow: processor time of the thread that makes them, which is the data
//     plane's work; daemon-cores and daemon-ns/flow: all other processor time of the
//     process, for one node that tells and all that are told;
//   - ring-lost, channel-lost, resyncs: what was lost on the way, and snapshots that
//     made up for it;
//   - entries/s-limit: what the machine writes into such a table in batches at the same
//     time, one thread, nothing else; a connection has two.
func BenchmarkReplicationPipeline(b *testing.B) {
	all := newPipeline(b, 3)
	for _, peers := range []int{1, 2} {
		for _, rate := range []int{50_000, 200_000, 0} {
			name := fmt.Sprintf("peers=%d/rate=%d", peers, rate)
			if rate == 0 {
				name = fmt.Sprintf("peers=%d/rate=max", peers)
			}
			b.Run(name, func(b *testing.B) {
				p := all.with(b)
				for b.Loop() {
					p.replicateTo(peers)
					p.measure(b, peers, rate)
					p.empty()
				}
			})
		}
	}
	b.Run("telling", func(b *testing.B) {
		p := all.with(b)
		for b.Loop() {
			p.replicateTo(1)
			p.telling(b)
			p.empty()
		}
	})
}

// with is the same pipeline for another benchmark to report to.
func (p *pipeline) with(tb testing.TB) *pipeline {
	q := *p
	q.tb, q.ns = tb, p.ns.With(tb)
	return &q
}

func (p *pipeline) measure(b *testing.B, peers, rate int) {
	b.Helper()
	first := p.members[0]
	watch := newPipelineWatch(b, p.gauges[1:1+peers])
	lost, process, began := first.dp.Stats(), cpuOf(b, unix.RUSAGE_SELF), time.Now()
	var maker time.Duration
	p.ns.Do(func() {
		before := cpuOf(b, unix.RUSAGE_THREAD)
		p.make(rate, watch)
		maker = cpuOf(b, unix.RUSAGE_THREAD) - before
	})
	making, made := time.Since(began), p.maker.Made()
	missing := watch.finish()
	took, rest := time.Since(began), cpuOf(b, unix.RUSAGE_SELF)-process-maker
	resident := residentMemory(b)

	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(made)/making.Seconds(), "flows/s-made")
	b.ReportMetric(float64(made-missing)/took.Seconds(), "flows/s-arrived")
	b.ReportMetric(float64(missing), "missing")
	b.ReportMetric(watch.quantile(0.5), "ms-there-p50")
	b.ReportMetric(watch.quantile(0.99), "ms-there-p99")
	b.ReportMetric(float64(maker.Nanoseconds())/float64(made), "maker-ns/flow")
	b.ReportMetric(float64(rest.Nanoseconds())/float64(made), "daemon-ns/flow")
	b.ReportMetric(rest.Seconds()/took.Seconds(), "daemon-cores")
	b.ReportMetric(resident, "MB-resident")
	now := first.dp.Stats()
	ring := now.Counters["ring_lost"] - lost.Counters["ring_lost"]
	b.ReportMetric(float64(ring), "ring-lost")
	b.ReportMetric(float64(now.LostRecords-lost.LostRecords-ring), "channel-lost")
	for _, s := range first.repl.Status() {
		b.ReportMetric(s.LagP50MS, "ms-lag-p50")
		b.ReportMetric(s.LagP99MS, "ms-lag-p99")
		b.ReportMetric(float64(s.Resyncs), "resyncs")
	}
	p.compare(b, made)
	limit, err := bpftest.BatchLimit(1 << 20)
	p.must(err)
	b.ReportMetric(limit, "entries/s-limit")
}

// compare demands that all that was made is established here, and that the peers hold
// exactly that.
func (p *pipeline) compare(b *testing.B, made uint64) {
	b.Helper()
	if held := p.held(0); held != made {
		b.Errorf("%d made, the data plane holds %d; drops %v", made, held, p.members[0].dp.Stats().Drops)
	}
	for _, s := range p.members[0].repl.Status() {
		// Digests leave out what is younger than five seconds, each by its own clock.
		p.await("the table of "+s.Peer+" is the same", func() bool {
			found, err := p.members[0].repl.Compare(context.Background(), s.Peer)
			p.must(err)
			return len(found.Differ) == 0
		})
	}
}

// make makes connections at a rate a second, 0: as fast as it goes. Call it in the
// namespace.
func (p *pipeline) make(rate int, watch *pipelineWatch) {
	total := uint64(pipelineFlows - pipelineFlows/16)
	if rate > 0 {
		total = min(total, uint64(rate*pipelineSeconds))
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); p.maker.Made() < total; {
		piece := 1000
		if rate > 0 {
			<-tick.C
			due := min(uint64(time.Since(began).Seconds()*float64(rate)), total)
			if due <= p.maker.Made() {
				continue
			}
			piece = int(due - p.maker.Made())
		}
		if _, err := p.maker.Make(piece); err != nil {
			p.tb.Error(err)
			return
		}
		watch.mark(p.maker.Made(), time.Now())
	}
}

// telling is what a record for the peers costs the packets of a connection, its
// reader at work beside them: a service that is replicated and one that is not, in turns.
func (p *pipeline) telling(b *testing.B) {
	b.Helper()
	const rounds, connections = 400, 1000
	var told, quiet, more []float64
	p.ns.Do(func() {
		for round := range rounds {
			each, order := map[uint32]float64{}, []uint32{pipelineTold, pipelineQuiet}
			if round%2 == 1 { // nobody always runs behind the other
				slices.Reverse(order)
			}
			for _, service := range order {
				p.maker.SetVIP(pipelineAddress(service))
				took, err := p.maker.Make(connections)
				if err != nil {
					b.Error(err)
					return
				}
				each[service] = float64(took.Nanoseconds())
			}
			told, quiet = append(told, each[pipelineTold]), append(quiet, each[pipelineQuiet])
			more = append(more, each[pipelineTold]-each[pipelineQuiet])
		}
	})
	p.maker.SetVIP(pipelineAddress(pipelineTold))
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(told, 0.5), "told-ns/flow")
	b.ReportMetric(quantile(quiet, 0.5), "untold-ns/flow")
	b.ReportMetric(quantile(more, 0.5), "telling-ns/flow")
}

func quantile(of []float64, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return of[min(int(q*float64(len(of))), len(of)-1)]
}

// cpuOf is the processor time that this process or thread has used.
func cpuOf(b *testing.B, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// residentMemory is this process's, in MB: maps in the kernel do not count.
func residentMemory(b *testing.B) float64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.ParseFloat(string(bytes.Fields(statm)[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * float64(os.Getpagesize()) / (1 << 20)
}

// pipelineWatch follows what was made into the peers' tables. Their order is that in
// which it was made, so a count says what has come.
type pipelineWatch struct {
	b      *testing.B
	gauges []*bpftest.Gauge
	last   chan struct{} // closed when all was made
	done   chan struct{}

	mu    sync.Mutex
	marks []pipelineMark // not there yet
	lags  []float64      // ms
	held  uint64         // by the slowest peer
	made  uint64
}

type pipelineMark struct {
	made uint64
	at   time.Time
}

func newPipelineWatch(b *testing.B, gauges []*bpftest.Gauge) *pipelineWatch {
	w := &pipelineWatch{b: b, gauges: gauges, last: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

func (w *pipelineWatch) mark(made uint64, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made = made
	w.marks = append(w.marks, pipelineMark{made, at})
}

// finish waits for the last and returns how many did not come.
func (w *pipelineWatch) finish() (missing uint64) {
	close(w.last)
	<-w.done
	return w.made - min(w.held, w.made)
}

func (w *pipelineWatch) quantile(q float64) float64 { return quantile(w.lags, q) }

func (w *pipelineWatch) run() {
	defer close(w.done)
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	last, limit := w.last, (<-chan time.Time)(nil)
	for {
		select {
		case <-limit:
			return
		case <-last:
			last, limit = nil, time.After(time.Minute)
		case <-tick.C:
			if w.look() == 0 && last == nil {
				return
			}
		}
	}
}

// look returns how many marks are still to come.
func (w *pipelineWatch) look() int {
	held := ^uint64(0)
	for _, g := range w.gauges {
		n, err := g.Connections()
		if err != nil {
			w.b.Error(err)
		}
		held = min(held, n)
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = held
	n := 0
	for ; n < len(w.marks) && w.marks[n].made <= held; n++ {
		w.lags = append(w.lags, now.Sub(w.marks[n].at).Seconds()*1000)
	}
	w.marks = w.marks[n:]
	return len(w.marks)
}
