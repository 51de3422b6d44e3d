package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newEndpointCmd(a *app) *cobra.Command {
	cmd := group("endpoint", "List, drain and resume endpoints", "List the endpoints of services, and drain and resume them.")
	cmd.AddCommand(
		newEndpointListCmd(a),
		newEndpointActionCmd(a, "drain", "Give an endpoint no new flows",
			"Give an endpoint no new flows. The ones it has go on.", "gets no new flows"),
		newEndpointActionCmd(a, "resume", "End the draining of an endpoint",
			"End the draining of an endpoint: it gets new flows again.", "gets new flows"),
	)
	return cmd
}

// newEndpointActionCmd is a command that does what its name says to one endpoint.
func newEndpointActionCmd(a *app, verb, short, long, done string) *cobra.Command {
	return a.completing(a.changes(&cobra.Command{
		Use:     verb + " SERVICE ADDRESS:PORT",
		Short:   short,
		Long:    long,
		Example: "  pontoon endpoint " + verb + " web 10.2.0.21:8080",
		Args:    wantEndpoint,
	}, http.MethodPost, func(args []string) string {
		return servicePath(args[0]) + "/endpoints/" + url.PathEscape(args[1]) + "/" + verb
	}, func(args []string) string {
		return fmt.Sprintf("%s of %s %s", args[1], args[0], done)
	}), serviceNames(), endpointNames)
}

func wantEndpoint(cmd *cobra.Command, args []string) error {
	if err := wantArgs("SERVICE", "ADDRESS:PORT")(cmd, args); err != nil {
		return err
	}
	if _, err := netip.ParseAddrPort(args[1]); err != nil {
		return usagef("%q: want ADDRESS:PORT, like 10.2.0.21:8080", args[1])
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
		Use:     "list",
		Short:   "List the endpoints of all services",
		Long:    "List the endpoints of all services. Flows are those the node that answers forwards,\nwithout its copies of other nodes' flows.",
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
	t.head("SERVICE", "ENDPOINT", "WEIGHT", "ADMIN", "HEALTH", "FLOWS")
	for _, r := range endpointRows(services) {
		t.row(r.Service, r.Address, r.Weight, cellFor(adminCells, r.Admin), cellFor(healthCells, r.Health), r.Flows)
	}
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
		web.EndpointUnknown: {"not probed", plain},
	}
)
