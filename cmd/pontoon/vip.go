package main

import (
	"cmp"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/spf13/cobra"

	"pontoon/fsm"
)

func newVIPCmd(a *app) *cobra.Command {
	cmd := group("vip", "List, create and delete virtual addresses",
		`A virtual address (VIP) is held and announced by the master of its instance.
Clients connect to one of kind service; endpoints route back through one of kind
gateway; those of kind snat are what endpoints of mode fullnat see as source.`)
	cmd.AddCommand(
		shows(a, &cobra.Command{
			Use:     "list",
			Short:   "List the virtual addresses",
			Long:    "List the virtual addresses, their instances and how they are announced.",
			Example: "  pontoon vip list",
			Args:    wantArgs(),
		}, func([]string) string { return "/v1/vips" }, drawVIPs),
		newVIPCreateCmd(a),
		a.completing(a.changes(&cobra.Command{
			Use:   "delete ADDRESS",
			Short: "Delete a virtual address no service uses",
			Long: `Delete a virtual address. One that a service uses is refused. No node answers for
it any more: connections that a deleted service left on it are lost when the
network forgets where it was.`,
			Example: "  pontoon vip delete 192.168.80.200",
			Args:    wantAddress,
		}, http.MethodDelete, func(args []string) string { return "/v1/vips/" + url.PathEscape(args[0]) },
			func(args []string) string { return "virtual address " + args[0] + " is deleted" }), vipNames()),
	)
	return cmd
}

func wantAddress(cmd *cobra.Command, args []string) error {
	if err := wantArgs("ADDRESS")(cmd, args); err != nil {
		return err
	}
	if _, err := netip.ParseAddr(args[0]); err != nil {
		return usagef("%q: want an IP address, like 192.168.80.200 or 2001:db8::200", args[0])
	}
	return nil
}

func newVIPCreateCmd(a *app) *cobra.Command {
	var instance, iface string
	cmd := &cobra.Command{
		Use:   "create ADDRESS",
		Short: "Create a virtual address",
		Long: `Create a virtual address. For one that exists, its settings are replaced.

The master of the instance holds it, alone in its prefix (/32 or /128), on the
interface whose subnet contains it, unless --interface names another. No service
listens on one of kind snat: it takes the place of the services' VIPs as source
towards the endpoints, and every one of them adds ports to connect from.

A node that is cut off from the quorum cannot know whether another has taken its
place. By default it stops claiming the address within its lease (see "pontoon
run --help"), so that clients find one node only; connections that still reach it
go on. With --on-quorum-loss hold it goes on claiming it: better where the rest of
the cluster is more likely to be down than out of sight.

With --announce bgp the address need not be in a subnet of a link. The nodes tell
routers the way to it (see "pontoon bgp"): the master the best one, and those who
follow it others that are used when it is gone. In an instance of kind ecmp all nodes
tell the same, and routers spread the traffic over them.`,
		Example: `  pontoon vip create 192.168.80.200
  pontoon vip create 203.0.113.10 --announce bgp
  pontoon vip create 10.2.0.1 --kind gateway
  pontoon vip create 2001:db8:2::101 --kind snat`,
		Args: wantAddress,
	}
	cmd.Flags().StringVar(&instance, "instance", fsm.DefaultInstance, "the instance it belongs to")
	a.completingFlag(cmd, "instance", instanceNames())
	cmd.Flags().StringVar(&iface, "interface", "", "the interface that holds it (default: the one whose subnet contains it)")
	kind := newChoice(string(fsm.VIPService), string(fsm.VIPService), string(fsm.VIPGateway), string(fsm.VIPSNAT)).
		addTo(cmd, "kind", "", "service: clients connect to it; gateway: the endpoints' next hop; snat: a source towards endpoints")
	mode := newChoice(string(fsm.AnnounceL2), string(fsm.AnnounceL2), string(fsm.AnnounceBGP), string(fsm.AnnounceNone)).
		addTo(cmd, "announce", "", "l2: ARP and neighbour discovery on a link; bgp: routes to the BGP peers; none: something else brings traffic here")
	loss := newChoice(string(fsm.QuorumRelease), string(fsm.QuorumRelease), string(fsm.QuorumHold)).
		addTo(cmd, "on-quorum-loss", "", "release: a node that is cut off stops claiming it within its lease; hold: it goes on, and two may claim it")
	empty := newChoice("", string(fsm.NoEndpointWithdraw), string(fsm.NoEndpointKeep)).
		addTo(cmd, "on-no-endpoint", "", "with --announce bgp, while no service of it has an endpoint that takes new flows: withdraw the routes, or keep them (default withdraw)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		address := netip.MustParseAddr(args[0]) // wantAddress has seen to it
		body := fsm.VIP{
			Address:   address,
			Instance:  instance,
			Kind:      fsm.VIPKind(kind.value),
			Interface: iface,
			Announce:  fsm.AnnounceMode(mode.value),

			OnQuorumLoss: fsm.QuorumLoss(loss.value),
			OnNoEndpoint: fsm.NoEndpoint(empty.value),
		}
		return a.write(cmd, http.MethodPut, "/v1/vips/"+url.PathEscape(address.String()), body, "virtual address "+address.String()+" is in place")
	}
	return cmd
}

func drawVIPs(t *table, vips []fsm.VIP) {
	t.head("ADDRESS", "KIND", "INSTANCE", "INTERFACE", "ANNOUNCED BY", "WITHOUT QUORUM", "WITHOUT ENDPOINTS")
	for _, v := range vips {
		iface := v.Interface
		switch {
		case iface == "" && v.Announce == fsm.AnnounceBGP:
			iface = "-"
		case iface == "":
			iface = "by subnet"
		}
		t.row(v.Address, v.Kind, v.Instance, iface, v.Announce, cmp.Or(v.OnQuorumLoss, fsm.QuorumRelease), v.OnNoEndpoint)
	}
}
