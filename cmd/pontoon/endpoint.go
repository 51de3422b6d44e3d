package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newEndpointCmd(a *app) *cobra.Command {
	cmd := group("endpoint", "List, drain and resume endpoints", "List the endpoints of services, and drain and resume them.")
	cmd.AddCommand(
		newEndpointListCmd(a),
		newEndpointDrainCmd(a),
		newEndpointResumeCmd(a),
	)
	return cmd
}

func newEndpointDrainCmd(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "drain SERVICE ADDRESS:PORT",
		Short: "Give an endpoint no new flows",
		Long: `Give an endpoint no new flows. Those it has go on until they end, or until the
timeout is over; then they get what the service's --on-remove says. For an
endpoint that is draining already the time begins anew. "pontoon endpoint list"
tells how many flows are left.`,
		Example: `  pontoon endpoint drain web 10.2.0.21:8080
  pontoon endpoint drain web 10.2.0.21:8080 --timeout 10m`,
		Args: wantEndpoint,
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0,
		"how long it keeps its flows, up to 168h; 0s is without end (default: the service's drain timeout)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path := endpointPath(args) + "/drain"
		if cmd.Flags().Changed("timeout") {
			path += "?" + url.Values{"timeout": {timeout.String()}}.Encode()
		}
		return a.write(cmd, http.MethodPost, path, nil, fmt.Sprintf("%s of %s gets no new flows", args[1], args[0]))
	}
	return a.completing(cmd, serviceNames(), endpointNames)
}

func newEndpointResumeCmd(a *app) *cobra.Command {
	return a.completing(a.changes(&cobra.Command{
		Use:     "resume SERVICE ADDRESS:PORT",
		Short:   "End the draining of an endpoint",
		Long:    "End the draining of an endpoint: it gets new flows again.",
		Example: "  pontoon endpoint resume web 10.2.0.21:8080",
		Args:    wantEndpoint,
	}, http.MethodPost, func(args []string) string { return endpointPath(args) + "/resume" },
		func(args []string) string { return fmt.Sprintf("%s of %s gets new flows", args[1], args[0]) }), serviceNames(), endpointNames)
}

func endpointPath(args []string) string {
	return servicePath(args[0]) + "/endpoints/" + url.PathEscape(args[1])
}

func wantEndpoint(cmd *cobra.Command, args []string) error {
	if err := wantArgs("SERVICE", "ADDRESS:PORT")(cmd, args); err != nil {
		return err
	}
	if _, err := netip.ParseAddrPort(args[1]); err != nil {
		return usagef("%q: want ADDRESS:PORT, like 10.2.0.21:8080 or [2001:db8::21]:8080", args[1])
	}
	return nil
}

// endpointRow is one endpoint with the service it belongs to, for programs.
type endpointRow struct {
	Service string `json:"service"`
	web.EndpointStatus
}

// newEndpointListCmd lists the endpoints of all services. The API has no path
// of its own for that: they are part of the services.
func newEndpointListCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the endpoints of all services",
		Long: `List the endpoints of all services. State, since when and the last error are what
the node that probes them has found out (see "pontoon service create --help" for
how). Latencies are the median and the 99th percentile of the last good probes of
the node that answers. Flows are those it forwards, without its copies of other
nodes' flows; of an endpoint that drains those that are left.`,
		Example: "  pontoon endpoint list",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		answer, err := a.call(cmd, http.MethodGet, "/v1/services", nil)
		if err != nil {
			return err
		}
		if format.value == formatTable {
			return show(a, format.value, answer, drawEndpoints)
		}
		var services []web.ServiceStatus
		if err := decode(answer, &services); err != nil {
			return err
		}
		return showValue(a, format.value, endpointRows(services))
	}
	return cmd
}

func endpointRows(services []web.ServiceStatus) []endpointRow {
	rows := []endpointRow{}
	for _, s := range services {
		for _, e := range s.Endpoints {
			rows = append(rows, endpointRow{Service: s.Name, EndpointStatus: e})
		}
	}
	return rows
}

func drawEndpoints(t *table, services []web.ServiceStatus) {
	t.head("SERVICE", "ENDPOINT", "WEIGHT", "ADMIN", "STATE", "SINCE", "LATENCY P50/P99", "FLOWS", "ERROR")
	for _, s := range services {
		for _, e := range s.Endpoints {
			t.row(s.Name, e.Address, weightCell(e), adminCell(e), healthCell(s.Service, e), sinceWords(e.HealthSince, time.Now()), latencyOf(e), flowsOf(e), e.HealthError)
		}
	}
}

// weightCell says also how much of its weight an endpoint gets that has just come up.
func weightCell(e web.EndpointStatus) string {
	if e.Share == 0 || e.Share == 100 {
		return fmt.Sprint(e.Weight)
	}
	return fmt.Sprintf("%d (%d%%)", e.Weight, e.Share)
}

// healthCell tells one of which nothing is known yet from one that nobody asks.
func healthCell(s fsm.Service, e web.EndpointStatus) cell {
	c := cellFor(healthCells, e.Health)
	switch {
	case e.Health == web.EndpointUnknown && !s.Probe.Active():
		c.text = "not probed"
	case e.Flapping:
		c.text += ", flapping"
		if c.style != bad {
			c.style = warn
		}
	}
	return c
}

func latencyOf(e web.EndpointStatus) string {
	if e.LatencyP99MS == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f/%.1f ms", e.LatencyP50MS, e.LatencyP99MS)
}

// flowsOf says of one that drains that its flows are to become fewer.
func flowsOf(e web.EndpointStatus) string {
	if e.Admin == fsm.AdminDrain {
		return fmt.Sprintf("%d left", e.DrainFlowsLeft)
	}
	return fmt.Sprint(e.Flows)
}

// adminCell says also when a drain ends.
func adminCell(e web.EndpointStatus) cell {
	c := cellFor(adminCells, e.Admin)
	if !e.DrainUntil.IsZero() {
		c.text += " until " + e.DrainUntil.Local().Format("2006-01-02 15:04:05")
	}
	return c
}

// What people read in place of the API's words, and how it looks.
var (
	adminCells = map[fsm.AdminState]cell{
		fsm.AdminUp:    {"up", plain},
		fsm.AdminDrain: {"draining", warn},
		fsm.AdminDown:  {"down", warn},
	}
	healthCells = map[web.EndpointHealth]cell{
		web.EndpointUp:      {"up", good},
		web.EndpointDown:    {"down", bad},
		web.EndpointUnknown: {"unknown", plain},
	}
)
