package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// watchInterval is how often --watch asks and redraws.
const watchInterval = time.Second

func newStatusCmd(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster and what this node does",
		Long: `Show the cluster as the answering node sees it: nodes, instances and their
masters, services and endpoints; and of this node itself: flows, their
replication to the others, packets dropped.

The exit status says whether the question was answered, not whether all is well;
a program reads summary.level (ok, warn, bad) of -o json.`,
		Example: "  pontoon status --watch",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "ask and redraw every second, until interrupted")
	cmd.RunE = showOrWatch(a, "/v1/status", &format.value, &watch, drawStatus)
	return cmd
}

// showOrWatch shows what path answers, once or every second.
func showOrWatch[T any](a *app, path string, format *string, watch *bool, draw func(*table, T)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		if *watch {
			return watchAnswer(cmd.Context(), a, c, path, *format, draw)
		}
		answer, err := c.get(cmd.Context(), path)
		if err != nil {
			return err
		}
		return show(a, *format, answer, draw)
	}
}

// watchAnswer shows what path answers every second. A daemon that answered once and
// then does not is shown as such and asked again: that is when people watch.
func watchAnswer[T any](ctx context.Context, a *app, c *api, path, format string, draw func(*table, T)) error {
	answer, err := c.get(ctx, path)
	if err != nil {
		return err
	}
	answered := time.Now()
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		frame, err := frameOf(a, answer, format, draw)
		if err != nil {
			return err
		}
		a.redraw(frame)
		select {
		case <-ctx.Done():
			return nil // interrupted is how a watch ends
		case <-tick.C:
		}
		next, err := c.call(ctx, http.MethodGet, path, nil, 5*watchInterval)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.notef("pontoon: %v (the above is %s old)\n", err, time.Since(answered).Round(time.Second))
			continue
		}
		answer, answered = next, time.Now()
	}
}

// frameOf draws one picture of --watch. Programs get one JSON object per
// line, or one YAML document per answer.
func frameOf[T any](a *app, answer []byte, format string, draw func(*table, T)) (string, error) {
	var buf bytes.Buffer
	frame := *a
	frame.out = &buf
	switch format {
	case formatTable:
		var v T
		if err := decode(answer, &v); err != nil {
			return "", err
		}
		t := newTable(&buf, a.color())
		draw(t, v)
		err := t.flush()
		return buf.String(), err
	default:
		err := frame.printRecord(format, answer)
		return buf.String(), err
	}
}

// redraw shows a frame in place of the one before on a terminal, cut to its
// height, and after it elsewhere.
func (a *app) redraw(frame string) {
	if !isTerminal(a.out) {
		a.printf("%s", frame)
		return
	}
	// Home, every line cleared to its end, then everything below: no flicker.
	a.printf("\x1b[H%s\x1b[K\n\x1b[J", strings.Join(fitFrame(frame, a.terminalRows()), "\x1b[K\n"))
}

// fitFrame cuts a frame to a terminal of so many rows, of which the cursor
// needs the last; 0 rows is a height nobody knows.
func fitFrame(frame string, rows int) []string {
	lines := strings.Split(strings.TrimRight(frame, "\n"), "\n")
	if rows < 3 || len(lines) < rows {
		return lines
	}
	keep := rows - 2
	return append(lines[:keep], fmt.Sprintf("... %s more: make the window higher", count(len(lines)-keep, "line")))
}

func (a *app) terminalRows() int {
	f, ok := a.out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Row)
}
