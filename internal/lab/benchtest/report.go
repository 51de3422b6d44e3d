package benchtest

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Workload is one kind of traffic.
type Workload string

// The workloads.
const (
	Bulk1 Workload = "bulk1" // one TCP connection that sends as fast as it can
	Bulk4 Workload = "bulk4" // four of them
	Conns Workload = "conns" // new TCP connections, one byte each way, 32 at a time from 16 addresses
	UDP   Workload = "udp"   // 64-byte packets on 4096 flows, as fast as the kernel can make them
)

// Workloads are all there are, in the order they are measured.
func Workloads() []Workload { return []Workload{Bulk1, Bulk4, Conns, UDP} }

// words say what a workload's figures are.
type words struct {
	title, rate, cost string
	decimals          int
}

func (w Workload) words() words {
	switch w {
	case Bulk1:
		return words{"Bulk TCP, 1 stream", "Gbit/s", "µs of CPU per MiB", 2}
	case Bulk4:
		return words{"Bulk TCP, 4 streams", "Gbit/s", "µs of CPU per MiB", 2}
	case Conns:
		return words{"New TCP connections", "per second", "µs of CPU per connection", 0}
	case UDP:
		return words{"Small UDP packets", "thousand per second", "ns of CPU per packet", 0}
	}
	return words{string(w), "", "", 0}
}

// Sample is one measurement. Units are the workload's, see its table.
type Sample struct {
	Rate     float64
	P50, P99 time.Duration // of a connection, from connect to the answer; Conns only
	// Cost is the whole machine's busy time for one unit of work: client, load
	// balancer, server.
	Cost float64
	// Loss is the part of the packets offered that did not arrive; UDP only.
	Loss float64
	// Steal is how much of one processor the hypervisor took meanwhile.
	Steal float64
}

// Failure says why there are no figures.
type Failure struct {
	Contender string
	Workload  Workload // empty when the contender did not start
	Err       error
}

// Report holds the samples of a run.
type Report struct {
	// Unavailable are the contenders that did not start, Failed the single
	// measurements that did not succeed.
	Unavailable, Failed []Failure

	idle      float64 // processors busy while nobody sent
	rounds    int
	window    time.Duration
	workloads []Workload
	names     []string          // of the paths, in their order
	floor     map[string]string // the direct path each is compared with
	samples   map[Workload]map[string][]*Sample
}

func newReport(cfg Config) *Report {
	return &Report{rounds: cfg.Rounds, window: cfg.Window, workloads: cfg.Workloads, floor: map[string]string{}, samples: map[Workload]map[string][]*Sample{}}
}

// enter makes a path known that will be measured.
func (r *Report) enter(name string, xdp bool) {
	r.names = append(r.names, name)
	switch {
	case name == directName || name == directXDPName:
	case xdp:
		r.floor[name] = directXDPName
	default:
		r.floor[name] = directName
	}
}

// add books the outcome of one measurement of a round.
func (r *Report) add(round int, w Workload, name string, s Sample, err error) {
	if err != nil {
		r.Failed = append(r.Failed, Failure{Contender: name, Workload: w, Err: err})
		return
	}
	if r.samples[w] == nil {
		r.samples[w] = map[string][]*Sample{}
	}
	if r.samples[w][name] == nil {
		r.samples[w][name] = make([]*Sample, r.rounds)
	}
	r.samples[w][name][round] = &s
}

// spread is the middle and the ends of some values.
type spread struct{ median, low, high float64 }

func spreadOf(values []float64) (spread, bool) {
	if len(values) == 0 {
		return spread{}, false
	}
	v := slices.Sorted(slices.Values(values))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return spread{median: mid, low: v[0], high: v[len(v)-1]}, true
}

// values takes one figure of each round that has it.
func (r *Report) values(w Workload, name string, of func(*Sample) float64) (out []float64) {
	for _, s := range r.samples[w][name] {
		if s != nil {
			out = append(out, of(s))
		}
	}
	return out
}

// Median is the middle of a contender's rates, false when there is none.
func (r *Report) Median(w Workload, name string) (float64, bool) {
	s, ok := spreadOf(r.values(w, name, func(s *Sample) float64 { return s.Rate }))
	return s.median, ok
}

// Names are what was measured, in order.
func (r *Report) Names() []string { return slices.Clone(r.names) }

// paired makes one figure of each round in which both have a sample.
func (r *Report) paired(w Workload, name, base string, of func(a, b *Sample) float64) (out []float64) {
	mine, theirs := r.samples[w][name], r.samples[w][base]
	for i := range min(len(mine), len(theirs)) {
		if mine[i] != nil && theirs[i] != nil {
			out = append(out, of(mine[i], theirs[i]))
		}
	}
	return out
}

// ratio is the median of the rounds' ratios of rates.
func (r *Report) ratio(w Workload, name, base string) string {
	s, ok := spreadOf(r.paired(w, name, base, func(a, b *Sample) float64 { return a.Rate / b.Rate }))
	if !ok {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.low, s.high)
}

// share is what is left of the cost without the cost of the way without a
// machine. For packets, those that were offered and lost have cost their
// sender too, which is taken off as well.
func share(mine, direct *Sample) float64 {
	offered := 1.0
	if mine.Loss > 0 && mine.Loss < 1 {
		offered = 1 / (1 - mine.Loss)
	}
	return mine.Cost - offered*direct.Cost*(1-direct.Loss)
}

// Write prints the report as Markdown.
func (r *Report) Write(out io.Writer) error {
	var b strings.Builder
	for _, w := range r.workloads {
		r.table(&b, w)
	}
	r.hooks(&b)
	for _, f := range r.Unavailable {
		fmt.Fprintf(&b, "%s: not available: %v\n\n", f.Contender, f.Err)
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "%s, %s: a measurement failed: %v\n\n", f.Contender, f.Workload, f.Err)
	}
	r.footer(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *Report) table(b *strings.Builder, w Workload) {
	t := w.words()
	head := []string{"", t.rate, "× routing", "× nftables", t.cost, "of that the load balancer's"}
	if w == Conns {
		head = append(head, "p50 ms", "p99 ms")
	}
	if w == UDP {
		head = append(head, "lost")
	}
	fmt.Fprintf(b, "### %s\n\n| %s |\n|%s\n", t.title, strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, name := range r.names {
		if row := r.row(w, name); row != nil {
			fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	b.WriteByte('\n')
}

// hooks compares what was measured at both hooks with itself.
func (r *Report) hooks(b *strings.Builder) {
	var rows []string
	for _, name := range r.names {
		tc := strings.Replace(name, "-xdp", "-tc", 1)
		if tc == name || !slices.Contains(r.names, tc) {
			continue
		}
		row := "| " + strings.Replace(name, "-xdp", "", 1)
		for _, w := range r.workloads {
			row += " | " + r.ratio(w, name, tc)
		}
		rows = append(rows, row+" |\n")
	}
	if len(rows) == 0 {
		return
	}
	b.WriteString("### XDP, as a multiple of TC\n\n| |")
	for _, w := range r.workloads {
		b.WriteString(" " + w.words().title + " |")
	}
	b.WriteString("\n|" + strings.Repeat("---|", len(r.workloads)+1) + "\n" + strings.Join(rows, "") + "\n")
}

// row is one line of a table, nil when there is nothing to say.
func (r *Report) row(w Workload, name string) []string {
	t := w.words()
	figure := func(decimals int, of func(*Sample) float64) string {
		s, ok := spreadOf(r.values(w, name, of))
		if !ok {
			return "–"
		}
		return fmt.Sprintf("%.*f (%.*f–%.*f)", decimals, s.median, decimals, s.low, decimals, s.high)
	}
	if len(r.values(w, name, func(*Sample) float64 { return 0 })) == 0 {
		return nil
	}
	row := []string{
		name, figure(t.decimals, func(s *Sample) float64 { return s.Rate }),
		r.ratio(w, name, routingName), r.ratio(w, name, nftablesName),
		figure(0, func(s *Sample) float64 { return s.Cost }),
	}
	mine := "–"
	if s, ok := spreadOf(r.paired(w, name, r.floor[name], share)); ok {
		mine = fmt.Sprintf("%.0f (%.0f–%.0f)", s.median, s.low, s.high)
	}
	row = append(row, mine)
	if w == Conns {
		milli := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		row = append(row,
			figure(2, func(s *Sample) float64 { return milli(s.P50) }), figure(2, func(s *Sample) float64 { return milli(s.P99) }))
	}
	if w == UDP {
		row = append(row, figure(0, func(s *Sample) float64 { return s.Loss * 100 })+" %")
	}
	return row
}

// explanation stands below the tables.
const explanation = `Medians of %d interleaved rounds of %s each, with the lowest and highest; ratios are made within a round. Everything runs on
the same processors. CPU is the busy time of the whole machine, client and server included; the load balancer's part is what is
left without the cost of the same work on a cable without a machine between (direct, and direct-xdp for what works in XDP). Packets
are made, forwarded and counted in one chain of interrupts, mostly on one processor; what works in XDP is counted in XDP on the far side,
everything else at TC. Without traffic %.1f %% of one processor was busy.`

// quiet is how much of a processor may be busy without traffic. The daemons'
// timers need less than half of it.
const quiet = 0.1

// footer says what to make of the figures.
func (r *Report) footer(b *strings.Builder) {
	var steal []float64
	for w := range r.samples {
		for name := range r.samples[w] {
			steal = append(steal, r.values(w, name, func(s *Sample) float64 { return s.Steal })...)
		}
	}
	fmt.Fprintf(b, explanation, r.rounds, r.window, r.idle*100)
	if s, ok := spreadOf(steal); ok {
		fmt.Fprintf(b, " The hypervisor took %.1f %% (%.1f at most).", s.median*100, s.high*100)
	}
	if r.idle > quiet {
		b.WriteString(" **The machine was not quiet: these figures show that the benchmark works, and no more.**")
	}
	b.WriteByte('\n')
}

// progress is one measurement in a few words.
func progress(w Workload, s Sample, err error) string {
	if err != nil {
		return "failed: " + err.Error()
	}
	t := w.words()
	text := fmt.Sprintf("%.*f %s, %.0f %s", t.decimals, s.Rate, t.rate, s.Cost, t.cost)
	if w == Conns {
		text += fmt.Sprintf(", p50 %s, p99 %s", s.P50.Round(time.Microsecond), s.P99.Round(time.Microsecond))
	}
	if s.Loss > 0 {
		text += fmt.Sprintf(", %.0f %% lost", s.Loss*100)
	}
	return text
}
