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

func newBGPCmd(a *app) *cobra.Command {
	cmd := group("bgp", "Tell routers about virtual addresses",
		`The nodes tell routers by BGP where virtual addresses are (those that are created
with --announce bgp). A peer is a router they speak with; without any, nobody is
told. Virtual addresses, services and a change of master never touch a session.`)
	peer := group("peer", "List, add, change and remove BGP peers",
		`A peer is a router the nodes speak BGP with: all of them, or one.`)
	peer.AddCommand(newPeerListCmd(a), newPeerAddCmd(a), newPeerRemoveCmd(a))
	cmd.AddCommand(
		shows(a, &cobra.Command{
			Use:     "show",
			Short:   "Show the settings of the BGP speakers",
			Long:    "Show the settings of the BGP speakers, and the AS and router id of each node.",
			Example: "  pontoon bgp show",
			Args:    wantArgs(),
		}, func([]string) string { return "/v1/bgp" }, drawBGPSettings),
		newBGPSetCmd(a), peer, newBGPRoutesCmd(a))
	return cmd
}

func newPeerListCmd(a *app) *cobra.Command {
	return shows(a, &cobra.Command{
		Use:   "list",
		Short: "List the BGP peers and this node's sessions",
		Long: `List the BGP peers, and the sessions the node that answers has with them. A session
that is not established says why. A peer that only other nodes speak with, or with
which this one has an entry of its own, is listed without a session.`,
		Example: "  pontoon bgp peer list",
		Args:    wantArgs(),
	}, func([]string) string { return "/v1/bgp/peers" }, func(t *table, peers []web.BGPPeerStatus) { drawPeers(t, peers, time.Now()) })
}

func newPeerAddCmd(a *app) *cobra.Command {
	var f peerFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "add ADDRESS --as N",
		Short: "Add a BGP peer, or change what is given of one",
		Long: `Add a BGP peer. Of one that exists, what is given is changed and the rest stays;
the answer says which sessions that resets. All sessions that are not named go on.

All nodes of role lb speak with the peer, or one with --node. An entry for one node
takes the place of the entry for all, on that node, and begins with the defaults.

A reset session is back within seconds. Until then a router that does graceful
restart keeps the routes, unless the AS, the source, the family or graceful restart
itself is what changes; others are without them. The entry for all nodes changes on
all at once; with --node one can follow the other. --dry-run says what would be
reset, and changes nothing.`,
		Example: `  pontoon bgp peer add 192.0.2.1 --as 65101 --bfd
  pontoon bgp peer add 192.0.2.1 --as 65101 --hold 30s --dry-run
  pontoon bgp peer add 2001:db8::1 --as 65101 --node lb1 --password-file peer.key`,
		Args: wantAddress,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			address := netip.MustParseAddr(args[0]).Unmap() // wantAddress has seen to it
			path := peerPath(address.String(), f.node.node)
			return edit(a, cmd, path, true, func(current web.BGPPeerStatus, there bool, condition http.Header) error {
				p := current.BGPPeer
				if !there {
					p = fsm.BGPPeer{Address: address, Node: f.node.node}
					if err := requireFlags(cmd, "as"); err != nil {
						return err
					}
				}
				if err := f.merge(cmd, &p); err != nil {
					return err
				}
				return a.writeBGP(cmd, http.MethodPut, path, p, condition, dryRun, "peer "+address.String()+" is in place")
			})
		},
	}
	f.addTo(a, cmd)
	addDryRun(cmd, &dryRun)
	return a.completing(cmd, peerNames())
}

func newPeerRemoveCmd(a *app) *cobra.Command {
	var node nodeOrAll
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "remove ADDRESS",
		Short: "Remove a BGP peer",
		Long: `Remove a BGP peer: the entry for all nodes, or with --node that of one. Its sessions
end, and the router drops their routes at once. Where the entry of one node goes
and there is one for all, the node goes on with that.`,
		Example: "  pontoon bgp peer remove 192.0.2.1",
		Args:    wantAddress,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.writeBGP(cmd, http.MethodDelete, peerPath(args[0], node.node), nil, nil, dryRun, "peer "+args[0]+" is removed")
		},
	}
	node.addTo(a, cmd, "the entry of this node; all: the entry for all nodes")
	addDryRun(cmd, &dryRun)
	return a.completing(cmd, peerNames())
}

func newBGPRoutesCmd(a *app) *cobra.Command {
	var advertised, received bool
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "List the routes this node advertises or has received",
		Long: `List the routes the node that answers advertises to its peers, or with --received
those it has from them, whether an import rule lets them in or not.

A lower MED and a higher local preference are preferred by routers: the master
advertises with MED 10, those who follow it with 20, 40, 80 and so on.`,
		Example: "  pontoon bgp routes --received",
		Args:    wantArgs(),
	}
	cmd.Flags().BoolVar(&advertised, "advertised", false, "those this node advertises (the default)")
	cmd.Flags().BoolVar(&received, "received", false, "those this node has received")
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if advertised && received {
			return usagef("--advertised and --received: give one of them")
		}
		direction := web.BGPAdvertised
		if received {
			direction = web.BGPReceived
		}
		answer, err := a.call(cmd, http.MethodGet, "/v1/bgp/routes?direction="+string(direction), nil)
		if err != nil {
			return err
		}
		return show(a, format.value, answer, drawRoutes)
	}
	return cmd
}

func peerPath(address string, node fsm.NodeID) string {
	path := "/v1/bgp/peers/" + url.PathEscape(address)
	if node != "" {
		path += "?node=" + url.QueryEscape(string(node))
	}
	return path
}

func addDryRun(cmd *cobra.Command, dryRun *bool) {
	cmd.Flags().BoolVar(dryRun, "dry-run", false, "change nothing, and say which sessions would be added, reset and removed")
}

// writeBGP makes a change, or tries it, and says what becomes of which session.
func (a *app) writeBGP(cmd *cobra.Command, method, path string, body any, condition http.Header, dryRun bool, done string) error {
	if dryRun {
		u, err := url.Parse(path)
		if err != nil {
			return fmt.Errorf("make request: %w", err)
		}
		q := u.Query()
		q.Set("dry_run", "true")
		u.RawQuery = q.Encode()
		path = u.String()
	}
	written, err := askIf[web.BGPWritten](a, cmd, method, path, body, condition)
	if err != nil {
		return err
	}
	if dryRun {
		a.printf("nothing is changed; this would happen:\n")
	} else {
		a.committed(web.WriteResult{Index: written.Index}, done)
	}
	for _, line := range sessionLines(written.Sessions) {
		a.printf("%s\n", line)
	}
	return nil
}

func peerNames() names {
	return namesAt("/v1/bgp/peers", func(p web.BGPPeerStatus) any { return p.Address })
}
