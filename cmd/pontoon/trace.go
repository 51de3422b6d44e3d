package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pontoon/web"
)

// traceFlags is what `trace` was asked for.
type traceFlags struct {
	filter  flowFilter
	count   int
	timeout time.Duration
	bytes   bool
	file    string
	format  *choice
}

func newTraceCmd(a *app) *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:   "trace --client ADDRESS [--service SERVICE]",
		Short: "Show what is decided about packets, one by one",
		Long: `Show what the data plane of the node that answers decides about packets: which
connection they belong to, which endpoint was selected, how they are rewritten and
sent, or why they are dropped. It ends after --count packets, after --timeout, or
when interrupted. While nobody traces it costs nothing; while somebody does,
matching packets take a slower way and the others are as fast as ever.

--write keeps the packets, as they came in and as they left, in a file for
Wireshark: interface "before" and interface "after", with the verdict as comment.
At most the first 192 bytes of a packet are kept.`,
		Example: `  pontoon trace --client 10.1.0.5
  pontoon trace --service web --count 20 --write web.pcapng`,
		Args: wantArgs(),
	}
	cmd.Flags().StringVar(&f.filter.service, "service", "", "only packets of this service")
	a.completingFlag(cmd, "service", serviceNames())
	cmd.Flags().StringVar(&f.filter.client, "client", "", "only packets of this `address`, address:port or prefix")
	cmd.Flags().IntVar(&f.count, "count", web.DefaultTraceCount, fmt.Sprintf("end after so many packets, 1 to %d", web.MaxTraceCount))
	cmd.Flags().DurationVar(&f.timeout, "timeout", web.DefaultTraceTimeout, fmt.Sprintf("end after this time, at most %s", web.MaxTraceTimeout))
	cmd.Flags().BoolVar(&f.bytes, "bytes", false, "show the bytes of each packet, before and after")
	cmd.Flags().StringVar(&f.file, "write", "", "write the packets to this pcapng `file`")
	f.format = newChoice(formatTable, formatTable, formatJSON).
		addTo(cmd, "output", "o", "how to print: table for people, json (one object per line) for programs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		c, err := a.api()
		if err != nil {
			return err
		}
		return a.trace(cmd.Context(), c, f)
	}
	return cmd
}

func (f *traceFlags) check() error {
	switch {
	case f.filter.client == "" && f.filter.service == "":
		return usagef("missing --client or --service")
	case f.count < 1 || f.count > web.MaxTraceCount:
		return usagef("--count %d: want 1 to %d", f.count, web.MaxTraceCount)
	case f.timeout <= 0 || f.timeout > web.MaxTraceTimeout:
		return usagef("--timeout %s: want a time like 30s, at most %s", f.timeout, web.MaxTraceTimeout)
	}
	return nil
}

func (f *traceFlags) path() string {
	q := url.Values{"count": {strconv.Itoa(f.count)}, "timeout": {f.timeout.String()}}
	if f.filter.client != "" {
		q.Set("client", f.filter.client)
	}
	if f.filter.service != "" {
		q.Set("service", f.filter.service)
	}
	return "/v1/trace?" + q.Encode()
}

// tracePrinter takes the messages of a session.
type tracePrinter struct {
	*app
	traceFlags
	capture *capture // nil without --write
	seen    traceTally
	end     *web.TraceEnd
}

// trace follows packets until the session ends or the user has seen enough,
// which is no error.
func (a *app) trace(ctx context.Context, c *api, f traceFlags) (err error) {
	p := &tracePrinter{app: a, traceFlags: f, seen: traceTally{verdicts: map[string]int{}, reasons: map[string]int{}}}
	if f.file != "" {
		if p.capture, err = newCapture(f.file); err != nil {
			return err
		}
		defer func() { p.capture.discard() }()
	}
	err = c.stream(ctx, http.MethodGet, f.path(), nil, p.message)
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil, errors.Is(err, errStreamEnded) && p.end != nil:
		err = nil
	case p.seen.packets == 0:
		return err
	}
	if p.capture != nil {
		err = errors.Join(err, p.capture.close())
	}
	p.summary()
	return err
}

func (p *tracePrinter) message(event string, data []byte) error {
	switch event {
	case "trace":
		return p.packet(data)
	case "end":
		p.end = new(web.TraceEnd)
		return decode(data, p.end)
	case "problem":
		var problem web.Problem
		if err := decode(data, &problem); err != nil {
			return err
		}
		return problem.Err()
	}
	return nil // a heartbeat
}

func (p *tracePrinter) packet(data []byte) error {
	var e web.TraceEvent
	if err := decode(data, &e); err != nil {
		return err
	}
	p.seen.add(e)
	if p.capture != nil {
		if err := p.capture.add(e); err != nil {
			return err
		}
	}
	if p.format.value != formatTable {
		return p.printRecord(p.format.value, data)
	}
	p.block(e)
	return nil
}

// block prints all about one packet, like a packet tracer.
func (p *tracePrinter) block(e web.TraceEvent) {
	p.printf("%s  %s\n", e.Time.Local().Format("15:04:05.000000"), traceHead(e))
	for _, s := range e.Steps {
		p.printf("    %s  %s\n", pad(s.Decision, 8), s.Text)
	}
	if e.Cut > 0 {
		p.printf("    %s  %d more that were not kept\n", pad("", 8), e.Cut)
	}
	t := newTable(p.out, p.color())
	p.printf("  %s\n", t.paint(traceVerdict(e)))
	if p.bytes {
		p.hex("before", e.Before)
		p.hex("after", e.After)
	}
}

// traceHead is a packet in one line.
func traceHead(e web.TraceEvent) string {
	words := []string{e.Protocol, e.Source.String(), ">", e.Destination.String()}
	if e.Source.Port() == 0 && e.Destination.Port() == 0 {
		words[1], words[3] = e.Source.Addr().String(), e.Destination.Addr().String()
	}
	if e.Flags != "" {
		words = append(words, "["+e.Flags+"]")
	}
	words = append(words, fmt.Sprintf("%d bytes", e.Length))
	if e.Segments > 1 {
		words = append(words, fmt.Sprintf("(%d segments)", e.Segments))
	}
	words = append(words, "in by", e.Interface)
	if e.VLAN != 0 {
		words = append(words, fmt.Sprintf("vlan %d", e.VLAN))
	}
	if e.Direction == "reply" {
		words = append(words, "(reply to "+e.Client.String()+")")
	}
	return strings.Join(words, " ")
}

func traceVerdict(e web.TraceEvent) cell {
	switch e.Verdict {
	case web.TraceForwarded:
		return cell{"forwarded by " + e.Out, good}
	case web.TraceAnswered:
		return cell{"answered by " + e.Out, warn}
	case web.TraceDropped:
		return cell{"dropped: " + e.Reason, bad}
	case web.TracePassed:
		return cell{"left to the host", plain}
	}
	return cell{e.Verdict, plain}
}

// hex prints bytes as they are on the wire, sixteen to a line.
func (p *tracePrinter) hex(name string, b []byte) {
	for at := 0; at < len(b); at += 16 {
		line := b[at:min(at+16, len(b))]
		p.printf("    %s  %04x  % x\n", pad(name, 8), at, line)
		name = " "
	}
}

// summary says how many packets there were. In another format than a table it
// is a remark, away from what scripts read.
func (p *tracePrinter) summary() {
	say := p.printf
	if p.format.value != formatTable {
		say = p.notef
	}
	say("%s\n", p.seen)
	if p.end != nil && p.end.Lost > 0 {
		say("%s more came faster than they could be told\n", count(p.end.Lost, "packet"))
	}
	if p.capture != nil {
		say("written to %s\n", p.file)
	}
}

// traceTally counts what became of packets.
type traceTally struct {
	packets  int
	verdicts map[string]int
	reasons  map[string]int // of those that were dropped
}

func (t *traceTally) add(e web.TraceEvent) {
	t.packets++
	t.verdicts[e.Verdict]++
	if e.Verdict == web.TraceDropped {
		t.reasons[e.Reason]++
	}
}

// String is one line: "7 packets: 5 forwarded, 2 dropped (no_flow 2)".
func (t traceTally) String() string {
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(t.verdicts)) {
		part := fmt.Sprintf("%d %s", t.verdicts[v], v)
		if v == web.TraceDropped {
			part += " (" + t.why() + ")"
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return "no packets"
	}
	return count(uint64(t.packets), "packet") + ": " + strings.Join(parts, ", ")
}

func (t traceTally) why() string {
	var parts []string
	for _, r := range slices.Sorted(maps.Keys(t.reasons)) {
		parts = append(parts, fmt.Sprintf("%s %d", r, t.reasons[r]))
	}
	return strings.Join(parts, ", ")
}
