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
it forwards, and no daemon there has to be quick (RFC 9747). On the same links the
daemons hold BFD sessions (RFC 5880, asynchronous mode), ten packets a second: they
tell a daemon that speaks from one that is silent, and stand in for echoes where
the other is a witness. A node that a majority has lost on all its paths is dead,
and its instances move.`)
	cmd.AddCommand(shows(a, &cobra.Command{
		Use:   "list",
		Short: "List the paths from this node",
		Long: `List the paths from this node to the others, and what watches them: echo (the
data plane there answers) or async (the daemon there does); none for a node that
this one shares no subnet with. A path that is down says why. An echo:
unanswered (nothing comes back), refused (the other machine lives, but its data
plane does not send echoes back), unsent (this node cannot send). A session:
silent, stopped (the other daemon said so), not heard there (only one direction
fails), not up yet, unsent.`,
		Example: "  pontoon bfd list",
		Args:    wantArgs(),
	}, func([]string) string { return "/v1/bfd" }, drawBFD))
	return cmd
}

func drawBFD(t *table, sessions []web.BFDSession) {
	t.head("PEER", "KIND", "ADDRESS", "INTERFACE", "STATE", "EVERY", "MISSES", "DETECTS IN", "RTT", "WHY")
	for _, s := range sessions {
		state, why := cell{s.State, good}, s.Why
		if s.State != "up" {
			state.style = bad
		}
		if s.Error != "" {
			why += ": " + s.Error
		}
		if s.Kind == web.BFDNone {
			t.row(s.Peer, s.Kind, "-", "-", "-", "-", "-", "-", "-", why)
			continue
		}
		t.row(s.Peer, s.Kind, s.Address, s.Interface, state, wordMS(s.IntervalMS), s.Multiplier, wordMS(s.DetectionMS), wordRTT(s), why)
	}
}

func wordMS(ms float64) string { return fmt.Sprintf("%g ms", ms) }

func wordRTT(s web.BFDSession) string {
	if s.Kind != web.BFDEcho {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", s.RTTMS)
}
