package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newNodeCmd(a *app) *cobra.Command {
	cmd := group("node", "List, drain and remove nodes", "List, show, drain, resume and remove the members of the cluster.")
	name := func(args []string) string { return "/v1/nodes/" + url.PathEscape(args[0]) }
	cmd.AddCommand(
		shows(a, &cobra.Command{
			Use:     "list",
			Short:   "List the nodes",
			Long:    "List the members of the cluster and how they are.",
			Example: "  pontoon node list",
			Args:    wantArgs(),
		}, func([]string) string { return "/v1/nodes" }, drawNodes),
		shows(a, &cobra.Command{
			Use:     "show NAME",
			Short:   "Show one node",
			Long:    "Show everything replicated about one node.",
			Example: "  pontoon node show lb1",
			Args:    wantArgs("NAME"),
		}, name, drawNode),
		newNodeDrainCmd(a, name),
		a.changes(&cobra.Command{
			Use:     "resume NAME",
			Short:   "End the draining of a node",
			Long:    "End the draining of a node. It may become master again; nothing moves back by itself.",
			Example: "  pontoon node resume lb1",
			Args:    wantArgs("NAME"),
		}, http.MethodPost, func(args []string) string { return name(args) + "/resume" },
			func(args []string) string { return args[0] + " is resumed" }),
		newNodeRemoveCmd(a, name),
	)
	for _, sub := range cmd.Commands() {
		if sub.Name() != "list" {
			a.completing(sub, nodeNames())
		}
	}
	return cmd
}

// drainRetry is the pace of asking again while a node cannot be drained.
const drainRetry = 500 * time.Millisecond

func newNodeDrainCmd(a *app, name func([]string) string) *cobra.Command {
	var (
		force   bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "drain NAME",
		Short: "Take all instances off a node",
		Long: `Take all instances off a node and give it none until it is resumed, for
maintenance. Its connections go on through the node that takes over.

While no other node holds all of its connections it waits for one, says what is in
the way, and gives up after --timeout with nothing changed. With --force it does
not wait, and connections may be lost.`,
		Example: "  pontoon node drain lb1",
		Args:    wantArgs("NAME"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.drain(cmd, name(args), args[0], force, timeout)
	}
	cmd.Flags().BoolVar(&force, "force", false, "drain also when connections are lost by it")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for a node that holds all connections")
	return cmd
}

// drain asks until the node is drained.
func (a *app) drain(cmd *cobra.Command, path, node string, force bool, timeout time.Duration) error {
	path += "/drain"
	if force {
		path += "?force=true"
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	again := time.NewTicker(drainRetry)
	defer again.Stop()
	for told := ""; ; {
		err := a.write(cmd, http.MethodPost, path, nil, node+" is drained: it owns no instance another node can own")
		if !errors.Is(err, fsm.ErrNotEligible) {
			return err
		}
		if text := err.Error(); text != told {
			told = text
			a.notef("pontoon: waiting: %s\n", text)
		}
		select {
		case <-cmd.Context().Done():
			return context.Cause(cmd.Context())
		case <-deadline.C:
			return fmt.Errorf("not drained within %s, nothing is changed (--force drains all the same): %w", timeout, err)
		case <-again.C:
		}
	}
}

func newNodeRemoveCmd(a *app, name func([]string) string) *cobra.Command {
	var force bool
	cmd := a.changes(&cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a node that will not come back",
		Long: `Remove a node from the cluster, also one that is dead. A living node should
leave by itself: run "pontoon leave" there. The last voter is not removed unless
--force is given.`,
		Example: "  pontoon node remove lb3",
		Args:    wantArgs("NAME"),
	}, http.MethodDelete, func(args []string) string {
		if force {
			return name(args) + "?force=true"
		}
		return name(args)
	}, func(args []string) string { return args[0] + " is removed" })
	cmd.Flags().BoolVar(&force, "force", false, "remove also the last voter")
	return cmd
}

func drawNodes(t *table, nodes []web.NodeStatus) {
	t.head("NODE", "ROLE", "ADDRESS", "RAFT", "STATE", "APPLIED", "MASTER OF")
	for _, n := range nodes {
		t.row(n.Name, n.Role, n.Address, n.Raft, nodeState(n), n.Applied, join(n.MasterOf))
	}
}

func drawNode(t *table, n web.NodeStatus) {
	t.row("name", n.Name)
	t.row("role", n.Role)
	t.row("state", nodeState(n))
	t.row("address", n.Address)
	t.row("gossip port", n.GossipPort)
	t.row("raft", n.Raft)
	t.row("master of", join(n.MasterOf))
	if len(n.Serves) > 0 {
		t.row("serves", join(n.Serves))
	}
	t.row("applied", n.Applied)
	t.row("alive", yesNo(n.Alive))
	if n.Role == fsm.RoleLB {
		t.row("data plane ready", yesNo(n.Ready))
		t.row("links up", yesNo(n.LinksUp))
		t.row("in sync", yesNo(n.InSync))
		t.row("draining", yesNo(n.Draining))
		t.row("slot", n.Slot)
	}
	t.row("joined at index", n.Joined)
}

// nodeState is how a node is, in words: the worst first.
func nodeState(n web.NodeStatus) cell {
	switch {
	case !n.Alive:
		return cell{"down", bad}
	case n.Role == fsm.RoleWitness:
		return cell{"healthy", good}
	}
	var parts []string
	if !n.Ready {
		parts = append(parts, "data plane not ready")
	}
	if !n.LinksUp {
		parts = append(parts, "link down")
	}
	if !n.InSync {
		parts = append(parts, "catching up flows")
	}
	if n.Draining {
		parts = append(parts, "draining")
	}
	if len(parts) > 0 {
		return cell{strings.Join(parts, ", "), warn}
	}
	return cell{"healthy", good}
}

// priorities collects --priority node=N.
type priorities map[fsm.NodeID]int

func (p priorities) String() string { return "" }

func (p priorities) Type() string { return "node=N" }

func (p priorities) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	var n int
	if _, err := fmt.Sscanf(value+"\n", "%d\n", &n); !ok || name == "" || err != nil {
		return fmt.Errorf("want node=N, like lb1=100")
	}
	p[fsm.NodeID(name)] = n
	return nil
}
