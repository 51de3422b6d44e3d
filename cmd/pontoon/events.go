package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"pontoon/web"
)

func newEventsCmd(a *app) *cobra.Command {
	var follow bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened",
		Long: `Show what happened: elections, failovers, joins, verdicts about nodes, the health and
draining of endpoints, BGP sessions, changes of the configuration and of flow
replication, as the node that answers saw it.

With --follow it goes on until interrupted; -o json then prints one object per
line, -o yaml one document per event.`,
		Example: "  pontoon events --since 10m --follow",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more, until interrupted")
	cmd.Flags().DurationVar(&since, "since", time.Hour, "how far back to begin, like 10m or 24h")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if since < 0 {
			return usagef("--since %s: want how far back, like 10m", since)
		}
		c, err := a.api()
		if err != nil {
			return err
		}
		query := url.Values{"since": {since.String()}}
		if follow {
			query.Set("follow", "true")
			return a.followEvents(cmd.Context(), c, "/v1/events?"+query.Encode(), format.value)
		}
		answer, err := c.get(cmd.Context(), "/v1/events?"+query.Encode())
		if err != nil {
			return err
		}
		return show(a, format.value, answer, func(t *table, events []web.Event) {
			for _, e := range events {
				drawEvent(t, e)
			}
		})
	}
	return cmd
}

// followEvents prints events as they come until the user has seen enough,
// which is no error.
func (a *app) followEvents(ctx context.Context, c *api, path, format string) error {
	err := c.stream(ctx, http.MethodGet, path, nil, func(event string, data []byte) error {
		if event != "event" {
			return nil // a heartbeat
		}
		return a.printEvent(format, data)
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a *app) printEvent(format string, data []byte) error {
	if format != formatTable {
		return a.printRecord(format, data)
	}
	var e web.Event
	if err := decode(data, &e); err != nil {
		return err
	}
	t := newTable(a.out, a.color())
	drawEvent(t, e)
	return t.flush()
}

// drawEvent prints one line. Columns have fixed widths, because the lines of
// --follow are drawn one at a time.
func drawEvent(t *table, e web.Event) {
	kind := cell{e.Kind, plain}
	switch e.Kind {
	case web.EventFailover, web.EventElection, web.EventVerdict:
		kind.style = warn
	}
	kind.text = pad(kind.text, 11)
	t.row(e.Time.Local().Format(time.DateTime), kind, pad(string(e.Node), 8), e.Text)
}

func pad(s string, width int) string {
	if s == "" {
		s = "-"
	}
	for len(s) < width {
		s += " "
	}
	return s
}
