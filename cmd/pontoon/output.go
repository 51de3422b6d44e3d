package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The output formats of commands that show something.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

// addOutput gives cmd the flag -o.
func addOutput(cmd *cobra.Command) *choice {
	return newChoice(formatTable, formatTable, formatJSON, formatYAML).
		addTo(cmd, "output", "o", "how to print: table for people, json or yaml for programs")
}

// show prints an answer of the API. JSON and YAML are the API's own bytes in
// another layout, so that nothing is lost between the daemon and a script; a
// table is drawn from the decoded answer.
func show[T any](a *app, format string, answer []byte, draw func(t *table, v T)) error {
	switch format {
	case formatJSON:
		var buf bytes.Buffer
		if err := json.Indent(&buf, bytes.TrimSpace(answer), "", "  "); err != nil {
			return fmt.Errorf("read the daemon's answer: %w", err)
		}
		a.printf("%s\n", buf.Bytes())
		return nil
	case formatYAML:
		out, err := yaml.JSONToYAML(answer)
		if err != nil {
			return fmt.Errorf("write yaml: %w", err)
		}
		a.printf("%s", out)
		return nil
	}
	var v T
	if err := decode(answer, &v); err != nil {
		return err
	}
	t := newTable(a.out, a.color())
	draw(t, v)
	return t.flush()
}

// showValue prints a value this program has put together, for programs.
func showValue(a *app, format string, v any) error {
	encoded, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return show(a, format, encoded, func(*table, json.RawMessage) {})
}

// printRecord prints one of many answers for programs: JSON on a line of its
// own, YAML as a document of its own.
func (a *app) printRecord(format string, data []byte) error {
	if format == formatYAML {
		doc, err := yaml.JSONToYAML(data)
		if err != nil {
			return fmt.Errorf("write yaml: %w", err)
		}
		a.printf("---\n%s", doc)
		return nil
	}
	var line bytes.Buffer
	if err := json.Compact(&line, bytes.TrimSpace(data)); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	a.printf("%s\n", line.Bytes())
	return nil
}

// color tells whether states may be coloured: on a terminal, and unless
// NO_COLOR says otherwise (no-color.org).
func (a *app) color() bool {
	return isTerminal(a.out) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// style is how a cell looks on a terminal that may show colours.
type style string

// Every style is of one length: text/tabwriter counts escape sequences as
// text, and columns stay straight only if all their cells carry as many.
const (
	plain  style = "\x1b[39m"
	header style = "\x1b[01m"
	good   style = "\x1b[32m"
	warn   style = "\x1b[33m"
	bad    style = "\x1b[31m"
)

const styleEnd = "\x1b[0m"

// cell is a text with a style.
type cell struct {
	text  string
	style style
}

// cellFor is what people read for a word of the API; one that a newer daemon
// says is shown as it is.
func cellFor[K ~string](cells map[K]cell, word K) cell {
	if c, ok := cells[word]; ok {
		return c
	}
	return cell{string(word), plain}
}

// table draws aligned columns.
type table struct {
	w     io.Writer
	tw    *tabwriter.Writer
	color bool
}

func newTable(w io.Writer, color bool) *table {
	return &table{w: w, tw: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), color: color}
}

// head prints the names of the columns.
func (t *table) head(names ...string) {
	cells := make([]any, len(names))
	for i, n := range names {
		cells[i] = cell{n, header}
	}
	t.row(cells...)
}

// row prints one line; a value may be a cell, or anything fmt can print.
// An empty text is shown as "-", so that columns can be counted by scripts.
func (t *table) row(values ...any) {
	for i, v := range values {
		c, ok := v.(cell)
		if !ok {
			c = cell{fmt.Sprint(v), plain}
		}
		if i > 0 {
			_, _ = io.WriteString(t.tw, "\t")
		}
		if c.text == "" {
			c.text = "-"
		}
		_, _ = io.WriteString(t.tw, t.paint(c))
	}
	_, _ = io.WriteString(t.tw, "\n")
}

// line prints text that belongs to no column. It ends the columns above it.
func (t *table) line(format string, args ...any) {
	_ = t.tw.Flush()
	_, _ = fmt.Fprintf(t.w, format+"\n", args...)
}

func (t *table) paint(c cell) string {
	if !t.color {
		return c.text
	}
	return string(c.style) + c.text + styleEnd
}

func (t *table) flush() error {
	if err := t.tw.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// join prints a list of anything, "-" for none.
func join[T any](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ", ")
}

// count prints a number with its noun.
func count[N int | uint64](n N, noun string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// roundDuration drops the digits nobody reads.
func roundDuration(d time.Duration) time.Duration {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

func seconds(s float64) string {
	return roundDuration(time.Duration(s * float64(time.Second))).String()
}
