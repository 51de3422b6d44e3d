package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newServiceCmd(a *app) *cobra.Command {
	cmd := group("service", "List, create, update and delete services",
		`A service spreads what clients send to a virtual address, protocol and port over
its endpoints. It fails over with the instance of its address.`)
	path := func(args []string) string { return servicePath(args[0]) }
	cmd.AddCommand(
		shows(a, &cobra.Command{
			Use:     "list",
			Short:   "List the services",
			Long:    "List the services. Flows are those the node that answers forwards,\nwithout its copies of other nodes' flows.",
			Example: "  pontoon service list",
			Args:    wantArgs(),
		}, func([]string) string { return "/v1/services" }, drawServices),
		shows(a, &cobra.Command{
			Use:     "show NAME",
			Short:   "Show one service and its endpoints",
			Long:    "Show one service and its endpoints. Flows are those the node that answers forwards,\nwithout its copies of other nodes' flows.",
			Example: "  pontoon service show web",
			Args:    wantArgs("NAME"),
		}, path, drawService),
		newServiceCreateCmd(a),
		newServiceUpdateCmd(a),
		a.changes(&cobra.Command{
			Use:   "delete NAME",
			Short: "Delete a service",
			Long: `Delete a service. New connections to it are refused; the ones it has go on until
they end, also if it is created anew. To cut them off, flush them before: see
"pontoon conntrack flush". Its virtual address stays, unless it is one of a pool and
no other service is on it: then the pool has it back, and no node answers for it.`,
			Example: "  pontoon service delete web",
			Args:    wantArgs("NAME"),
		}, http.MethodDelete, path, func(args []string) string { return "service " + args[0] + " is deleted" }),
	)
	for _, sub := range cmd.Commands() {
		if sub.Name() != "list" && sub.Name() != "create" {
			a.completing(sub, serviceNames())
		}
	}
	return cmd
}

func servicePath(name string) string { return "/v1/services/" + url.PathEscape(name) }

func newServiceCreateCmd(a *app) *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "create NAME --vip ADDRESS|auto[:POOL] --port PORT --endpoint ADDRESS:PORT ...",
		Short: "Create a service",
		Long: `Create a service. A virtual address that does not exist yet is created with it,
in the instance of --instance or in "default"; one that exists is used as it is,
and refused if it is in another instance than --instance says. For an address
that is to be held or announced in another way, see "pontoon vip create".

With --vip auto the service gets the lowest free address of the only pool, or of the
default one, with auto:POOL of that pool (see "pontoon pool"). It goes back to the
pool when no service is on it any more. With --share NAME all services that say the
same are on one address.

Modes: fullnat  the endpoints see the VIP as source, or one of the instance's VIPs
                of kind snat; they may be of the other IP family than the VIP
       onearm   the endpoints see an address of the load balancer as source
       dnat     the endpoints see the client; they route back through a VIP of
                kind gateway
       dsr      the endpoints see the client and answer it directly; they hold the
                VIP on their loopback interface and listen on the service's port.
                --tunnel l2: in a subnet of the load balancer; ipip: anywhere

Endpoints are probed, by default with a TCP connection or an SCTP handshake each 2s,
and with udp not at all; --probe none switches it off. One that is down gets no new
flows. "pontoon endpoint list" tells how they are.

Port P of a range P-Q leads to the port that stands with the endpoint, P+1 to the
next, and so on.`,
		Example: `  pontoon service create web --vip 192.168.80.200 --port 80 --protocol tcp \
    --mode fullnat --endpoint 10.2.0.21:8080 --endpoint 10.2.0.22:8080,weight=2 \
    --probe http --probe-path /healthz
  pontoon service create media --vip 2001:db8::200 --port 50000-50100 --protocol udp \
    --mode dsr --tunnel ipip --affinity client-ip --endpoint [2001:db8:7::21]:50000
  pontoon service create shop --vip auto --port 443 --endpoint 10.2.0.21:8443`,
		Args: wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "vip", "port"); err != nil {
				return err
			}
			if err := f.checkZeros(cmd); err != nil {
				return err
			}
			service := fsm.Service{Name: args[0]}
			if err := f.merge(cmd, &service); err != nil {
				return err
			}
			return a.putService(cmd, f.path(args[0], true), f.body(service), nil, "service "+args[0]+" is created")
		},
	}
	f.addTo(a, cmd)
	return cmd
}

func newServiceUpdateCmd(a *app) *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change what is given of a service",
		Long: `Change what is given of a service and leave the rest. --endpoint replaces the
whole list; --add-endpoint and --remove-endpoint change it. Connections to the
other endpoints go on until they end; those to an endpoint that is removed get
what --on-remove says. "pontoon endpoint drain" lets them end first.`,
		Example: `  pontoon service update web --algorithm maglev
  pontoon service update web --add-endpoint 10.2.0.23:8080
  pontoon service update web --probe http --probe-path /healthz --probe-interval 500ms`,
		Args: wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.checkEdits(cmd); err != nil {
				return err
			}
			return edit(a, cmd, servicePath(args[0]), false, func(current web.ServiceStatus, _ bool, condition http.Header) error {
				service := current.Service
				service.Endpoints = configured(current.Endpoints)
				if err := f.merge(cmd, &service); err != nil {
					return err
				}
				return a.putService(cmd, f.path(args[0], false), f.body(service), condition, "service "+args[0]+" is updated")
			})
		},
	}
	f.addTo(a, cmd)
	f.addEditsTo(cmd)
	return cmd
}

// putService writes a service and says what is so now, a virtual address that
// came with it included.
func (a *app) putService(cmd *cobra.Command, path string, service serviceBody, condition http.Header, done string) error {
	written, err := askIf[web.ServiceWritten](a, cmd, http.MethodPut, path, service, condition)
	if err != nil {
		return err
	}
	if v := written.VIP; v != nil {
		done += fmt.Sprintf(", with vip %s in instance %s", v.Address, v.Instance)
	}
	a.committed(written.WriteResult, done)
	for _, note := range written.Notes {
		a.printf("note: %s\n", note)
	}
	return nil
}

// configured strips endpoints of what only the running node knows.
func configured(endpoints []web.EndpointStatus) []fsm.Endpoint {
	out := make([]fsm.Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		out = append(out, fsm.Endpoint{Address: e.Address, Weight: e.Weight, Admin: e.Admin})
	}
	return out
}

func drawServices(t *table, services []web.ServiceStatus) {
	t.head("SERVICE", "ADDRESS", "MODE", "ALGORITHM", "ENDPOINTS", "FLOWS")
	for _, s := range services {
		t.row(s.Name, s.Frontend(), modeOf(s.Service), s.Algorithm, usable(s.Endpoints), s.Flows)
	}
}

func drawService(t *table, s web.ServiceStatus) {
	t.row("name", s.Name)
	t.row("address", s.Frontend())
	t.row("instance", s.Instance)
	t.row("mode", modeOf(s.Service))
	t.row("algorithm", s.Algorithm)
	t.row("affinity", affinityOf(s.Service))
	t.row("idle timeout", idleOf(s.Service))
	t.row("drain timeout", orWord(s.DrainTimeout, "none"))
	t.row("on remove", s.OnRemove)
	t.row("on full", s.OnFull)
	t.row("replicate", replicateOf(s.Service))
	t.row("probe", probeOf(s.Probe))
	t.row("on down", s.OnDown)
	t.row("all down", s.AllDown)
	t.row("slow start", orWord(s.SlowStart, "none"))
	t.row("new flows", fmt.Sprintf("%d a second and node before the flood defence starts", s.NewFlowRate))
	t.row("flows", s.Flows)
	t.line("")
	drawEndpoints(t, []web.ServiceStatus{s})
	drawOut(t, s)
	t.line("")
	drawTraffic(t, s)
}

// drawOut tells why endpoints take no new flows, and why some do that are down.
func drawOut(t *table, s web.ServiceStatus) {
	rows := func(head string, why func(web.EndpointStatus) string) {
		told := false
		for _, e := range s.Endpoints {
			text := why(e)
			if text == "" {
				continue
			}
			if !told {
				t.line("")
				t.head(head, "BECAUSE")
				told = true
			}
			t.row(e.Address, text)
		}
	}
	rows("TAKES NO NEW FLOWS", func(e web.EndpointStatus) string { return e.WhyOut })
	rows("TAKES NEW FLOWS THOUGH DOWN", func(e web.EndpointStatus) string {
		if e.WhyOut == "" && e.Health == web.EndpointDown {
			return "all are down, and all_down is open"
		}
		return ""
	})
}

// drawTraffic tells what the node that answers has done, since its data plane was set up.
func drawTraffic(t *table, s web.ServiceStatus) {
	t.head("TRAFFIC", "ACTIVE", "NEW", "PACKETS IN", "BYTES IN", "PACKETS OUT", "BYTES OUT")
	row := func(of any, v web.Traffic) {
		t.row(of, v.Active, v.New, v.ForwardPackets, v.ForwardBytes, v.ReplyPackets, v.ReplyBytes)
	}
	row("all", s.Traffic)
	for _, e := range s.Endpoints {
		row(e.Address, e.Traffic)
	}
}

// modeOf is "fullnat", or "dsr by ipip".
func modeOf(s fsm.Service) string {
	if s.Tunnel == "" {
		return string(s.Mode)
	}
	return fmt.Sprintf("%s by %s", s.Mode, s.Tunnel)
}

func affinityOf(s fsm.Service) string {
	if s.Affinity != fsm.AffinityClientIP {
		return string(s.Affinity)
	}
	return fmt.Sprintf("%s for %s", s.Affinity, s.AffinityTimeout)
}

func idleOf(s fsm.Service) string {
	if s.IdleReset {
		return s.IdleTimeout.String() + ", then both sides are told"
	}
	return s.IdleTimeout.String()
}

func replicateOf(s fsm.Service) string {
	if s.ReplicateMinAge == 0 {
		return string(s.Replicate)
	}
	return fmt.Sprintf("%s, from an age of %s", s.Replicate, s.ReplicateMinAge)
}

// orWord is a duration, or a word where it is 0.
func orWord(d fsm.Duration, word string) string {
	if d == 0 {
		return word
	}
	return d.String()
}

// usable counts the endpoints that get new flows.
func usable(endpoints []web.EndpointStatus) cell {
	n := 0
	for _, e := range endpoints {
		if e.Admin == fsm.AdminUp && e.Weight > 0 && e.Health != web.EndpointDown {
			n++
		}
	}
	c := cell{fmt.Sprintf("%d of %d usable", n, len(endpoints)), good}
	if n == 0 {
		c.style = bad
	}
	return c
}
