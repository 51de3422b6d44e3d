package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newRecoverCmd(a *app) *cobra.Command {
	var fenced []string
	cmd := &cobra.Command{
		Use:   "recover --i-have-fenced NODE[,NODE...]",
		Short: "Rebuild the cluster from this node, when its quorum is lost for good",
		Long: `Rebuild the cluster from this node alone, after so many of its voters were lost
for good that the rest can decide nothing any more. Configuration and connections
of this node are kept and its data plane goes on forwarding; what only the lost
nodes knew is lost.

Fence them first: cut their power or their network, so that none of them runs
again with its old disk. Two of three that come back together would be a majority
of the old cluster and serve beside the new one. Every other member has to be
named, witnesses and survivors too, for whoever is not this node starts anew. The
command refuses while a leader is heard or one of them answers; what it cannot
see is whether they are fenced or only out of reach.

Of several survivors choose the one with the highest "applied" in its own
"pontoon status". Afterwards, empty the others' data directories before their
daemons run again, and join them.`,
		Example: "  pontoon recover --i-have-fenced lb2,lb3",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := requireFlags(cmd, "i-have-fenced"); err != nil {
			return err
		}
		c, err := a.api()
		if err != nil {
			return err
		}
		return a.recover(cmd.Context(), c, fenced, format.value)
	}
	cmd.Flags().StringSliceVar(&fenced, "i-have-fenced", nil, "all other `nodes` of the cluster: none of them runs or will run with its old disk")
	a.completingFlag(cmd, "i-have-fenced", nodeNames())
	return overSocketOnly(cmd)
}

// recover asks the daemon to rebuild the cluster. The steps go to standard error
// when the result is for a program.
func (a *app) recover(ctx context.Context, c *api, fenced []string, format string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, clusterTimeout,
		fmt.Errorf("recovering takes longer than %s: it goes on, look at `pontoon status`", clusterTimeout))
	defer cancel()
	tell := a.printf
	if format != formatTable {
		tell = a.notef
	}
	var req web.RecoverRequest
	for _, name := range fenced {
		req.Fenced = append(req.Fenced, fsm.NodeID(strings.TrimSpace(name)))
	}
	answer, err := c.steps(ctx, "/v1/cluster/recover", req, func(text string) { tell("%s\n", text) })
	if err != nil {
		return err
	}
	return show(a, format, answer, func(t *table, r web.RecoverResult) {
		names := make([]string, len(r.Fenced))
		for i, n := range r.Fenced {
			names[i] = string(n)
		}
		t.line("\n%s leads cluster %s alone, from index %d on.", r.Survivor, r.ClusterID, r.Index)
		t.line("Now:")
		t.line("  1. Keep %s fenced. None of them may run with its old disk.", strings.Join(names, " and "))
		t.line("  2. Compare the configuration with what you expect: pontoon status, pontoon service list.")
		t.line("  3. Empty the data directory of each, start it, and join it with a token made here")
		t.line("     (pontoon token create [--role witness]). One voter keeps nothing alive: the")
		t.line("     warning in pontoon status goes when there are three again.")
	})
}
