package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// round is what one failure did.
type round struct {
	udp   outage
	arp   arpFelt
	tcp   []time.Duration // the longest silence of each connection, sorted
	lost  int             // connections
	parts map[string]float64
}

func (r round) String() string {
	s := fmt.Sprintf("network %.1f ms (%d of %d pings lost), arp silence %.1f ms, overlap %.1f ms",
		ms(r.udp.Blackout), r.udp.Lost, r.udp.Sent, ms(r.arp.Silence), ms(r.arp.Overlap))
	if n := len(r.tcp); n > 0 {
		s += fmt.Sprintf(", tcp p50 %.0f ms, max %.0f ms, %d of %d lost", ms(rank(r.tcp, 50)), ms(r.tcp[n-1]), r.lost, n)
	}
	for _, p := range timelineParts {
		if v, ok := r.parts[p]; ok {
			s += fmt.Sprintf(", %s %.1f", p, v)
		}
	}
	return s
}

// timelineParts are the parts of a timeline in their order.
var timelineParts = []string{"detected", "confirmed", "elected", "committed", "announced", "first_packet"}

// row is all rounds of one kind of failure.
type row struct {
	name   string
	rounds []round
}

// values are one figure of each round, sorted.
func (r row) values(of func(round) float64) []float64 {
	var out []float64
	for _, x := range r.rounds {
		out = append(out, of(x))
	}
	slices.Sort(out)
	return out
}

func (r row) udp() []float64     { return r.values(func(x round) float64 { return ms(x.udp.Blackout) }) }
func (r row) pings() []float64   { return r.values(func(x round) float64 { return float64(x.udp.Lost) }) }
func (r row) silence() []float64 { return r.values(func(x round) float64 { return ms(x.arp.Silence) }) }
func (r row) overlap() []float64 { return r.values(func(x round) float64 { return ms(x.arp.Overlap) }) }

// tcp is the longest silence of each connection in each round, sorted.
func (r row) tcp() []float64 {
	var out []float64
	for _, x := range r.rounds {
		for _, g := range x.tcp {
			out = append(out, ms(g))
		}
	}
	slices.Sort(out)
	return out
}

func (r row) lost() (lost, of int) {
	for _, x := range r.rounds {
		lost += x.lost
		of += len(x.tcp)
	}
	return lost, of
}

// part is one part of the timelines that have it, sorted.
func (r row) part(name string) []float64 {
	var out []float64
	for _, x := range r.rounds {
		if v, ok := x.parts[name]; ok {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

func (r row) metrics(b *testing.B) {
	if udp := r.udp(); len(udp) > 0 {
		b.ReportMetric(rank(udp, 50), "ms-network-p50")
		b.ReportMetric(rank(udp, 99), "ms-network-p99")
	}
	if tcp := r.tcp(); len(tcp) > 0 {
		b.ReportMetric(rank(tcp, 50), "ms-tcp-p50")
		b.ReportMetric(rank(tcp, 99), "ms-tcp-p99")
		lost, _ := r.lost()
		b.ReportMetric(float64(lost), "lost-connections")
	}
}

// report is Markdown: a table of what clients felt, and one of timelines.
type report []row

func (rep report) String() string {
	var sb strings.Builder
	w := tabwriter.NewWriter(&sb, 0, 0, 1, ' ', 0)
	line := func(cells ...string) { fmt.Fprintf(w, "| %s\t|\n", strings.Join(cells, "\t| ")) }
	rule := func(n int) { line(slices.Repeat([]string{"---"}, n)...) }
	head := []string{"failure", "rounds", "network blackout", "pings lost", "longest silence of a TCP connection", "connections lost", "nobody answers ARP", "two answer ARP"}
	line(head...)
	rule(len(head))
	for _, r := range rep {
		lost, of := r.lost()
		connections := "–"
		if of > 0 {
			connections = fmt.Sprintf("%d of %d", lost, of)
		}
		line(r.name, fmt.Sprint(len(r.rounds)), spread(r.udp()), spread(r.pings()), spread(r.tcp()), connections, spread(r.silence()), spread(r.overlap()))
	}
	_ = w.Flush() // a strings.Builder takes everything
	sb.WriteString("\n")
	head = append([]string{"timeline"}, timelineParts...)
	line(head...)
	rule(len(head))
	for _, r := range rep {
		cells := []string{r.name}
		for _, p := range timelineParts {
			cells = append(cells, spread(r.part(p)))
		}
		if strings.Join(cells[1:], "") != strings.Repeat("–", len(timelineParts)) {
			line(cells...)
		}
	}
	_ = w.Flush()
	sb.WriteString("\np50 / p90 / p99 / max, in milliseconds where not a count.\n")
	return sb.String()
}

// spread writes p50 / p90 / p99 / max of sorted values.
func spread(sorted []float64) string {
	if len(sorted) == 0 {
		return "–"
	}
	figure := func(v float64) string {
		if v >= 100 || v == float64(int(v)) {
			return fmt.Sprintf("%.0f", v)
		}
		return fmt.Sprintf("%.1f", v)
	}
	return strings.Join([]string{figure(rank(sorted, 50)), figure(rank(sorted, 90)), figure(rank(sorted, 99)), figure(sorted[len(sorted)-1])}, " / ")
}

func TestTheFailoverReportIsATable(t *testing.T) {
	r := row{name: "power"}
	for i := range 10 {
		r.rounds = append(r.rounds, round{
			udp: outage{Blackout: time.Duration(70+i) * time.Millisecond, Lost: 70}, tcp: []time.Duration{time.Millisecond, time.Second},
			parts: map[string]float64{"detected": 58.25},
		})
	}
	got := report{r, {name: "anchor", rounds: []round{{}}}}.String()
	for _, want := range []string{"74 / 78 / 79 / 79", "70 / 70 / 70 / 70", "1 / 1000 / 1000 / 1000", "0 of 20", "58.2 / 58.2 / 58.2 / 58.2"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "anchor"); n != 1 {
		t.Errorf("who has no timeline stands in %d tables", n)
	}
}
