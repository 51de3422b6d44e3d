package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"text/tabwriter"
	"time"

	"pontoon/internal/lab/traffic"
)

// Report is the outcome of a demo and what `demo -o json` prints. Times are
// in milliseconds.
type Report struct {
	Nodes       int             `json:"nodes"`
	Connections int             `json:"connections"`
	CalmGapMS   float64         `json:"calm_gap_ms"` // worst gap without any failure
	Failures    []FailureReport `json:"failures"`
	// Endpoints is the death and the return of an endpoint, of each form that is shown with a failure.
	Endpoints []EndpointReport `json:"endpoints"`
	OK        bool             `json:"ok"`
	Verdict   string           `json:"verdict"`
	wanted    int              // failures asked for
	endpoints int              // endpoint reports that have to be there
	bgp       bool
}

// FailureReport is what one failure did, from the hurt to the moment the
// victim was back and the cluster whole. Survived, Reset, Stalled and
// Corrupted add up to Connections.
type FailureReport struct {
	// Form is how the service's address reached the clients, and who forwarded.
	Form      demoForm `json:"form"`
	Kind      string   `json:"kind"`
	Victim    string   `json:"victim"`
	Successor string   `json:"successor"`
	// BlackoutMS is the longest time any connection went without an answer
	// while the victim was away, a lost one until its loss; P50MS and P99MS
	// are percentiles over the connections. One send interval of 100 ms is
	// there without any failure, see Report.CalmGapMS.
	BlackoutMS  float64 `json:"blackout_ms"`
	P50MS       float64 `json:"blackout_p50_ms"`
	P99MS       float64 `json:"blackout_p99_ms"`
	Connections int     `json:"connections"`
	Survived    int     `json:"survived"`
	Reset       int     `json:"reset"`
	Stalled     int     `json:"stalled"`
	Corrupted   int     `json:"corrupted"`
	// NewConnectionsOK says that fresh connections were served again while
	// the victim was away; NewOutageMS is how long none succeeded.
	NewConnectionsOK bool    `json:"new_connections_ok"`
	NewOutageMS      float64 `json:"new_connections_outage_ms"`
	// TakeoverMS is the time from the failure until all other nodes named
	// the successor, 0 without one.
	TakeoverMS float64 `json:"takeover_ms"`
	// RouterMS is the time from the failure until no route of the router led to the
	// victim any more; 0 without a router.
	RouterMS float64 `json:"router_ms,omitempty"`
	// Parts is the cluster's own timeline of the failover: when each step was
	// done since the victim's last sign of life.
	Parts map[string]float64 `json:"parts_ms,omitempty"`
	// ReturnGapMS is the longest gap while the victim came back.
	ReturnGapMS float64 `json:"return_gap_ms"`
	// Error is what did not come as it should, "" if all did.
	Error string `json:"error,omitempty"`
}

func newReport(cfg DemoConfig) Report {
	r := Report{
		Nodes: cfg.Nodes, Connections: cfg.Connections, Failures: []FailureReport{}, Endpoints: []EndpointReport{},
		wanted: len(cfg.Failures) * len(formsOf(cfg)), bgp: cfg.BGP,
	}
	if len(cfg.Failures) > 0 {
		r.endpoints = 2 * len(formsOf(cfg)) // a death and a return
	}
	return r
}

// fill puts the two halves of a round together: the time without the victim
// and the time of its return. A connection that stood still in the first half
// is a failed one, even if the victim's return has woken it.
func (fr *FailureReport) fill(out, back traffic.Result, problem error) {
	fr.BlackoutMS, fr.P50MS, fr.P99MS = ms(out.Blackout), ms(out.P50), ms(out.P99)
	fr.ReturnGapMS = ms(back.Blackout)
	fr.Connections = out.Connections
	fr.Reset = out.Reset + back.Reset
	fr.Corrupted = out.Corrupted + back.Corrupted
	fr.Stalled = min(max(out.Stalled, back.Stalled), fr.Connections-fr.Reset-fr.Corrupted)
	fr.Survived = fr.Connections - fr.Reset - fr.Corrupted - fr.Stalled
	for _, why := range append(out.Errors, back.Errors...) {
		problem = joinLine(problem, why)
	}
	if problem != nil {
		fr.Error = problem.Error()
	}
}

// joinLine puts one more line into an error that is only read by people.
func joinLine(err error, line string) error {
	if err == nil {
		return fmt.Errorf("lost: %s", line)
	}
	return fmt.Errorf("%w\nlost: %s", err, line)
}

// ok says whether the product held its promise.
func (fr *FailureReport) ok() bool {
	return fr.Error == "" && fr.Survived == fr.Connections && fr.NewConnectionsOK && (fr.Successor != "" || !fr.Form.hasMaster())
}

// conclude finds the verdict.
func (r *Report) conclude() {
	var (
		lost, corrupted, bad int
		worst                float64
	)
	for i := range r.Failures {
		fr := &r.Failures[i]
		lost += fr.Reset + fr.Stalled
		corrupted += fr.Corrupted
		worst = max(worst, fr.BlackoutMS)
		if !fr.ok() {
			bad++
		}
	}
	poor := 0
	for i := range r.Endpoints {
		if !r.Endpoints[i].ok() {
			poor++
		}
	}
	poor += r.endpoints - len(r.Endpoints)
	r.OK = bad == 0 && len(r.Failures) == r.wanted && poor == 0
	who := "the master"
	if r.bgp {
		who = "a node"
	}
	switch {
	case r.OK && r.wanted == 0 && len(r.Endpoints) == 0:
		r.Verdict = fmt.Sprintf("no failure was asked for; %d connections are carried", r.Connections)
	case r.OK:
		r.Verdict = fmt.Sprintf("%s failed %s; of %d connections none was lost and none corrupted; worst blackout %.0f ms",
			who, times(r.wanted), r.Connections, worst)
		if len(r.Endpoints) > 0 {
			r.Verdict += fmt.Sprintf("; an endpoint died and came back %s and cost the others nothing", times(len(r.Endpoints)/2))
		}
	case bad == 0 && len(r.Failures) == r.wanted:
		r.Verdict = fmt.Sprintf("%s failed %s and nothing was lost, but %d of %d deaths and returns of endpoints went badly",
			who, times(r.wanted), poor, r.endpoints)
	default:
		r.Verdict = fmt.Sprintf("%d of %d failures went badly: %d connections lost, %d corrupted",
			bad+r.wanted-len(r.Failures), r.wanted, lost, corrupted)
	}
}

func times(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return fmt.Sprintf("%d times", n)
}

// print writes the report to stdout, as JSON or as a table.
func (r Report) print(cfg DemoConfig) error {
	if cfg.JSON {
		enc := json.NewEncoder(cfg.Out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("print report: %w", err)
		}
		return nil
	}
	fmt.Fprintln(cfg.Out)
	if err := r.table(cfg.Out); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	word, c := "PASS", green
	if !r.OK {
		word, c = "FAIL", red
	}
	_, err := fmt.Fprintf(cfg.Out, "\n%s: %s\n", paint(cfg.Color, c, word), r.Verdict)
	return err
}

func (r Report) table(w io.Writer) error {
	if len(r.Failures) == 0 {
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if r.bgp {
		fmt.Fprint(tw, "FORM\tROUTER\t")
	}
	fmt.Fprintln(tw, "FAILURE\tVICTIM\tSUCCESSOR\tTAKEOVER\tBLACKOUT\tP99\tSURVIVED\tRESET\tSTALLED\tCORRUPTED\tNEW CONNECTIONS")
	for _, f := range r.Failures {
		served := "not served"
		if f.NewConnectionsOK {
			served = fmt.Sprintf("served, gap %.0f ms", f.NewOutageMS)
		}
		successor, takeover := "none", "-"
		if f.Successor != "" {
			successor, takeover = f.Successor, fmt.Sprintf("%.0f ms", f.TakeoverMS)
		}
		if r.bgp {
			fmt.Fprintf(tw, "%s\t%.0f ms\t", f.Form, f.RouterMS)
		}
		if !f.Form.hasMaster() {
			successor = "the others"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%.0f ms\t%.0f ms\t%d/%d\t%d\t%d\t%d\t%s\n", f.Kind, f.Victim, successor, takeover,
			f.BlackoutMS, f.P99MS, f.Survived, f.Connections, f.Reset, f.Stalled, f.Corrupted, served)
	}
	return errors.Join(tw.Flush(), r.endpointTable(w))
}

// endpointTable says what the deaths and returns of endpoints did.
func (r Report) endpointTable(w io.Writer) error {
	if len(r.Endpoints) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if r.bgp {
		fmt.Fprint(tw, "FORM\t")
	}
	fmt.Fprintln(tw, "ENDPOINT\tNAME\tFOUND AFTER\tNEW CONNECTIONS\tFAILED\tMISDIRECTED LATER\tITS OWN\tOTHERS SURVIVED")
	for _, e := range r.Endpoints {
		if r.bgp {
			fmt.Fprintf(tw, "%s\t", e.Form)
		}
		own, others := "-", e.Connections
		if e.Kind == endpointDeath {
			own, others = fmt.Sprint(e.Own), e.Connections-e.Own
		}
		fmt.Fprintf(tw, "%s\t%s\t%.0f ms\t%d\t%d\t%d\t%s\t%d/%d\n", e.Kind, e.Endpoint, e.AfterMS, e.New, e.Failed, e.Misdirected,
			own, min(e.Survived, others), others)
	}
	return tw.Flush()
}

// ms is d in milliseconds with one decimal.
func ms(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Millisecond)*10) / 10
}

// short is d as people like it: 812ms, 3.4s.
func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// Escape sequences of ECMA-48.
const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "1;32"
)

func paint(on bool, code, s string) string {
	if !on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// narrator tells people what happens, each line with the time since the
// beginning. It is safe for concurrent use.
type narrator struct {
	began time.Time
	color bool
	mu    sync.Mutex
	w     io.Writer
}

// newNarrator tells on stdout, or on stderr when stdout is for JSON.
func newNarrator(cfg DemoConfig) *narrator {
	n := &narrator{began: time.Now(), color: cfg.Color, w: cfg.Out}
	if cfg.JSON {
		n.w = cfg.Err
	}
	return n
}

func (n *narrator) line(code, format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := fmt.Sprintf(format, args...)
	if code != "" {
		s = paint(n.color, code, s)
	}
	fmt.Fprintf(n.w, "%s  %s\n", paint(n.color, dim, fmt.Sprintf("%6.1fs", time.Since(n.began).Seconds())), s)
}

// step is a thing the demo does or sees, detail what follows from it.
func (n *narrator) step(format string, args ...any)   { n.line("", format, args...) }
func (n *narrator) detail(format string, args ...any) { n.line("", "  "+format, args...) }
func (n *narrator) good(format string, args ...any)   { n.line(green, format, args...) }
func (n *narrator) bad(format string, args ...any)    { n.line(red, format, args...) }

// head begins a chapter.
func (n *narrator) head(format string, args ...any) {
	n.plain("")
	n.line(bold, format, args...)
}

func (n *narrator) plain(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintln(n.w, s)
}

// quarters returns a progress function that speaks at each quarter of total.
func (n *narrator) quarters(total int) func(int) {
	return func(done int) {
		for q := 1; q <= 4; q++ {
			if done == total*q/4 && done > 0 {
				n.detail("%d of %d connections are open", done, total)
				return
			}
		}
	}
}
