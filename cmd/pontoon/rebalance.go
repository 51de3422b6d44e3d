package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

// settleTimeout is how long a new master may take to carry its mastership out
// before the next instance is moved all the same.
const settleTimeout = 10 * time.Second

func newInstanceRebalanceCmd(a *app) *cobra.Command {
	var dryRun bool
	var format *choice
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Spread the masters evenly over the nodes",
		Long: `Spread the masters evenly over the nodes: each instance on an eligible node with the
highest priority it has for any, and among equals no node master of two more than
another. No instance is moved that could stay.

What would be moved is shown first, then one after the other is, as by "pontoon
instance move": connections go on. A node that failed and came back is master of
nothing by itself; this gives it its share again. Instances of kind ecmp have no
master, and "default" does not count while it has no virtual address.`,
		Example: `  pontoon instance rebalance --dry-run
  pontoon instance rebalance`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.rebalance(cmd, format.value, dryRun) },
	}
	format = addOutput(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would be moved (default false)")
	return cmd
}

func (a *app) rebalance(cmd *cobra.Command, format string, dryRun bool) error {
	answer, err := a.call(cmd, http.MethodGet, "/v1/rebalance", nil)
	if err != nil {
		return err
	}
	var moves []fsm.Move
	if err := decode(answer, &moves); err != nil {
		return err
	}
	if err := show(a, format, answer, drawMoves); err != nil || dryRun || len(moves) == 0 {
		return err
	}
	said := format == formatTable // scripts get the list alone
	for done := range len(moves) {
		// What is there to do is asked anew each time: a node may have failed meanwhile.
		now, err := ask[[]fsm.Move](a, cmd, http.MethodGet, "/v1/rebalance", nil)
		if err != nil {
			return fmt.Errorf("after %d of %d moves: %w", done, len(moves), err)
		}
		if len(now) == 0 {
			return nil
		}
		if err := a.moveOne(cmd, now[0], said); err != nil {
			return fmt.Errorf("after %d of %d moves: %w", done, len(moves), err)
		}
	}
	return nil
}

// moveOne moves an instance and waits until its new master has carried that out.
func (a *app) moveOne(cmd *cobra.Command, m fsm.Move, said bool) error {
	result, err := ask[web.WriteResult](a, cmd, http.MethodPost, instancePath(m.Instance)+"/move", web.MoveRequest{To: m.To})
	if err != nil {
		return err
	}
	if said {
		a.committed(result, fmt.Sprintf("%s is master of %s", m.To, m.Instance))
	}
	return a.waitCarriedOut(cmd, m.To, result.Index)
}

func (a *app) waitCarriedOut(cmd *cobra.Command, node fsm.NodeID, index uint64) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), settleTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := ask[web.NodeStatus](a, cmd, http.MethodGet, "/v1/nodes/"+url.PathEscape(string(node)), nil)
		if err != nil {
			return err
		}
		if st.Applied >= index {
			return nil
		}
		select {
		case <-ctx.Done():
			return cmd.Context().Err()
		case <-tick.C:
		}
	}
}

func drawMoves(t *table, moves []fsm.Move) {
	if len(moves) == 0 {
		t.line("nothing to move: the masters are spread evenly")
		return
	}
	t.head("INSTANCE", "FROM", "TO", "WHY")
	for _, m := range moves {
		t.row(m.Instance, m.From, m.To, m.Why)
	}
}
