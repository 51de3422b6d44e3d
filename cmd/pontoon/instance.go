package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newInstanceCmd(a *app) *cobra.Command {
	cmd := group("instance", "List, create, update, move and spread instances",
		`An instance is a group of virtual addresses and services that fails over
together; each has one master node, or all nodes serve it (kind ecmp). The instance
"default" always exists.`)
	cmd.AddCommand(
		shows(a, &cobra.Command{
			Use:     "list",
			Short:   "List the instances",
			Long:    "List the instances, their masters and who follows them, in order, and how many\nvirtual addresses and services they have.",
			Example: "  pontoon instance list",
			Args:    wantArgs(),
		}, func([]string) string { return "/v1/instances" }, drawInstances),
		newInstanceCreateCmd(a),
		newInstanceUpdateCmd(a),
		newInstanceMoveCmd(a),
		newInstanceRebalanceCmd(a),
		a.completing(a.changes(&cobra.Command{
			Use:     "delete NAME",
			Short:   "Delete an instance without addresses",
			Long:    "Delete an instance. One that still has virtual addresses is refused, and so is \"default\".",
			Example: "  pontoon instance delete blue",
			Args:    wantArgs("NAME"),
		}, http.MethodDelete, func(args []string) string { return instancePath(args[0]) },
			func(args []string) string { return "instance " + args[0] + " is deleted" }), instanceNames()),
	)
	return cmd
}

func instancePath(name string) string { return "/v1/instances/" + url.PathEscape(name) }

func newInstanceCreateCmd(a *app) *cobra.Command {
	f := instanceFlags{priorities: priorities{}}
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create an instance, or set its priorities and settings",
		Long: `Create an instance. For one that exists, the priorities are replaced, and with one
of the other flags all settings are; see "pontoon instance update" to change some.

The eligible node with the highest priority becomes the first master; among equals
the one that is master of the fewest instances. A master stays master while it can:
a higher priority elsewhere moves nothing by itself, and neither does a node that
came back (see "pontoon instance rebalance").

With --kind ecmp there is no master: all nodes serve, and routers spread the traffic
over them. The virtual addresses of such an instance are announced by BGP.`,
		Example: `  pontoon instance create blue --priority lb2=100 --priority lb3=50
  pontoon instance create wide --kind ecmp`,
		Args: wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := web.InstanceRequest{Priorities: f.priorities}
			f.merge(cmd, &body)
			return a.write(cmd, http.MethodPut, instancePath(args[0]), body, "instance "+args[0]+" is in place")
		},
	}
	f.addTo(a, cmd)
	return cmd
}

func newInstanceMoveCmd(a *app) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:     "move NAME --to NODE",
		Short:   "Make another node the master of an instance",
		Long:    "Make another node the master of an instance. Its connections go on through that node.",
		Example: "  pontoon instance move default --to lb2",
		Args:    wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "to"); err != nil {
				return err
			}
			return a.write(cmd, http.MethodPost, instancePath(args[0])+"/move", web.MoveRequest{To: fsm.NodeID(to)},
				fmt.Sprintf("%s is master of %s", to, args[0]))
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the `node` to move to; it must be eligible (alive, ready, in sync, not draining)")
	a.completingFlag(cmd, "to", nodeNames())
	return a.completing(cmd, instanceNames())
}

func drawInstances(t *table, instances []web.InstanceStatus) {
	t.head("INSTANCE", "MASTER", "SUCCESSION", "EPOCH", "VIPS", "SERVICES", "ADDRESSES", "SETTINGS")
	for _, i := range instances {
		t.row(i.Name, masterOf(i), join(i.Succession), i.Epoch, len(i.VIPs), i.Services, shortList(i.VIPs), settingsWords(i.InstanceSettings))
	}
}

func masterOf(i web.InstanceStatus) cell {
	if i.Kind == fsm.InstanceECMP && len(i.Succession) > 0 {
		return cell{"all", plain}
	}
	return master(i.Master)
}

func master(n fsm.NodeID) cell {
	if n == "" {
		return cell{"none", bad}
	}
	return cell{string(n), plain}
}
