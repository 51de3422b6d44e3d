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
	action := func(verb string) func(args []string) string {
		return func(args []string) string {
			return servicePath(args[0]) + "/endpoints/" + url.PathEscape(args[1]) + "/" + verb
		}
	}
	cmd.AddCommand(
		newEndpointListCmd(a),
		a.changes(&cobra.Command{
			Use:     "drain SERVICE ADDRESS:PORT",
			Short:   "Give an endpoint no new flows",
			Long:    "Give an endpoint no new flows. The ones it has go on.",
			Example: "  pontoon endpoint drain web 10.2.0.21:8080",
			Args:    wantEndpoint,
		}, http.MethodPost, action("drain"), func(args []string) string {
			return fmt.Sprintf("%s of %s gets no new flows", args[1], args[0])
		}),
		a.changes(&cobra.Command{
			Use:     "resume SERVICE ADDRESS:PORT",
			Short:   "End the draining of an endpoint",
			Long:    "End the draining of an endpoint: it gets new flows again.",
			Example: "  pontoon endpoint resume web 10.2.0.21:8080",
			Args:    wantEndpoint,
		}, http.MethodPost, action("resume"), func(args []string) string {
			return fmt.Sprintf("%s of %s gets new flows", args[1], args[0])
		}),
	)
	for _, sub := range cmd.Commands() {
		if sub.Name() != "list" {
			a.completing(sub, serviceNames(), endpointNames)
		}
	}
	return cmd
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
		Long:    "List the endpoints of all services. Flows are those of the node that answers.",
		Example: "  pontoon endpoint list",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		answer, err := c.get(cmd.Context(), "/v1/services")
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
		t.row(r.Service, r.Address, r.Weight, adminCell(r.Admin), healthCell(r.Health), r.Flows)
	}
}

func adminCell(s fsm.AdminState) cell {
	switch s {
	case fsm.AdminUp:
		return cell{"up", plain}
	case fsm.AdminDrain:
		return cell{"draining", warn}
	}
	return cell{string(s), warn}
}

func healthCell(h web.EndpointHealth) cell {
	switch h {
	case web.EndpointUp:
		return cell{"up", good}
	case web.EndpointDown:
		return cell{"down", bad}
	case web.EndpointUnknown:
		return cell{"not probed", plain}
	}
	return cell{string(h), plain}
}
