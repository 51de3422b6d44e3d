package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"pontoon/web"
)

func newConntrackCmd(a *app) *cobra.Command {
	cmd := group("conntrack", "List, count and flush tracked connections",
		`List, count and flush the tracked connections. list and count speak of the
table of the node that answers, copies of other nodes' flows included.`)
	cmd.AddCommand(newConntrackListCmd(a), newConntrackCountCmd(a), newConntrackFlushCmd(a))
	return cmd
}

// flowFilter is which flows a command is about.
type flowFilter struct {
	service string
	client  string
	limit   int
}

func (f *flowFilter) addTo(a *app, cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.service, "service", "", "only flows of this service")
	a.completingFlag(cmd, "service", serviceNames())
	cmd.Flags().StringVar(&f.client, "client", "", "only flows from this `address`, address:port or prefix")
}

func (f *flowFilter) query() string {
	q := url.Values{}
	if f.service != "" {
		q.Set("service", f.service)
	}
	if f.client != "" {
		q.Set("client", f.client)
	}
	q.Set("limit", strconv.Itoa(f.limit))
	return q.Encode()
}

func newConntrackListCmd(a *app) *cobra.Command {
	var f flowFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tracked connections",
		Long: `List the tracked connections of the node that answers. It owns the ones it
forwards; the others are copies, ready to be adopted.`,
		Example: "  pontoon conntrack list --service web --limit 20",
		Args:    wantArgs(),
	}
	f.addTo(a, cmd)
	cmd.Flags().IntVar(&f.limit, "limit", web.DefaultFlowLimit, fmt.Sprintf("at most so many, 1 to %d", web.MaxFlowLimit))
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.limit < 1 || f.limit > web.MaxFlowLimit {
			return usagef("--limit %d: want 1 to %d", f.limit, web.MaxFlowLimit)
		}
		c, err := a.api()
		if err != nil {
			return err
		}
		answer, header, err := c.exchange(cmd.Context(), http.MethodGet, "/v1/flows?"+f.query(), nil, callTimeout, nil)
		if err != nil {
			return err
		}
		if header.Get("Pontoon-Truncated") != "" {
			a.notef("pontoon: there are more than %d: raise --limit, or narrow with --service or --client\n", f.limit)
		}
		return show(a, format.value, answer, drawFlows)
	}
	return cmd
}

func drawFlows(t *table, flows []web.Flow) {
	t.head("PROTO", "CLIENT", "VIP", "SNAT", "ENDPOINT", "STATE", "SERVICE", "HELD AS", "AGE", "IDLE", "PACKETS", "BYTES")
	for _, f := range flows {
		held := "copy"
		if f.Owner {
			held = "owner"
		}
		t.row(f.Protocol, f.Client, f.VIP, addrPort(f.SNAT), f.Endpoint, f.State, f.Service, held,
			seconds(f.AgeS), seconds(f.IdleS), f.Packets, f.Bytes)
	}
}

func addrPort(ap netip.AddrPort) string {
	if !ap.IsValid() {
		return ""
	}
	return ap.String()
}

func newConntrackCountCmd(a *app) *cobra.Command {
	return shows(a, &cobra.Command{
		Use:     "count",
		Short:   "Count tracked connections",
		Long:    "Count the tracked connections of the node that answers.",
		Example: "  pontoon conntrack count",
		Args:    wantArgs(),
	}, func([]string) string { return "/v1/flows/count" }, drawFlowCounts)
}

func drawFlowCounts(t *table, c web.FlowCounts) {
	t.row("established", c.Established)
	t.row("half open", c.HalfOpen)
	t.row("owned", c.Owned)
	t.row("copies", c.Replica)
	t.row("adopted", c.Adopted)
	t.row("room for", c.Max)
}

func newConntrackFlushCmd(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "flush --service SERVICE",
		Short: "Forget the connections of a service, on every node",
		Long: `Forget the connections of a service, on every node. What their clients still send
is dropped without an answer, so that both ends notice when they time out.`,
		Example: "  pontoon conntrack flush --service web",
		Args:    wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := requireFlags(cmd, "service"); err != nil {
				return err
			}
			path := "/v1/flows?" + url.Values{"service": {service}}.Encode()
			result, err := ask[web.FlushResult](a, cmd, http.MethodDelete, path, nil)
			if err != nil {
				return err
			}
			a.printf("%s of service %s flushed here, and their copies elsewhere\n", count(result.Flushed, "connection"), service)
			return nil
		},
	}
	cmd.Flags().StringVar(&service, "service", "", "the service whose connections to forget")
	return a.completingFlag(cmd, "service", serviceNames())
}
