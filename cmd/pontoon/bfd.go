package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"pontoon/web"
)

func newBFDCmd(a *app) *cobra.Command {
	cmd := group("bfd", "Show the watched paths to the other nodes",
		`Each node sends echoes to every other over each link they share, fifty a second.
The other's data plane sends them back by itself, so what is measured is whether
it forwards, and no daemon there has to be quick (RFC 9747). A node that a
majority has lost on all its paths is dead, and its instances move.`)
	cmd.AddCommand(shows(a, &cobra.Command{
		Use:   "list",
		Short: "List the paths from this node",
		Long: `List the paths from this node to the others. A path that is down says why:
unanswered (nothing comes back), refused (the other machine lives, but its data
plane does not send echoes back), unsent (this node cannot send).`,
		Example: "  pontoon bfd list",
		Args:    wantArgs(),
	}, func([]string) string { return "/v1/bfd" }, drawBFD))
	return cmd
}

func drawBFD(t *table, sessions []web.BFDSession) {
	t.head("PEER", "ADDRESS", "INTERFACE", "STATE", "EVERY", "MISSES", "RTT", "WHY")
	for _, s := range sessions {
		state, why := cell{s.State, good}, s.Why
		if s.State != "up" {
			state.style = bad
		}
		if s.Error != "" {
			why += ": " + s.Error
		}
		t.row(s.Peer, s.Address, s.Interface, state, fmt.Sprintf("%g ms", s.IntervalMS), s.Multiplier, fmt.Sprintf("%.2f ms", s.RTTMS), why)
	}
}
