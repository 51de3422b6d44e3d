package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pontoon/web"
)

func newReplicationCmd(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "replication",
		Short: "Show how the copying of flows to and from the other nodes stands",
		Long: `Show, for each peer of the node that answers, the stream of flows to it and the
one from it: how far the peer is behind, how often it had to get everything
again and why, what comparing has found and repaired; and what this node took
over when it last became master.`,
		Example: "  pontoon replication --watch",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "ask and redraw every second, until interrupted")
	cmd.RunE = showOrWatch(a, "/v1/replication", &format.value, &watch, drawWholeReplication)
	cmd.AddCommand(newReplicationDigestCmd(a))
	return cmd
}

// digestTimeout leaves each node time to sum up some million flows.
const digestTimeout = time.Minute

func newReplicationDigestCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "digest",
		Short: "Ask whether the other nodes hold this node's flows as they are",
		Long: `Sum up the flows that the answering node forwards, there and in the copies on each
peer, and compare. The nodes do so by themselves every minute and repair what
differs. Flows of the last seconds are left out; those that change between the two
looks may still make a difference that is gone when you ask again.

The exit status is 1 when a peer differs or cannot be asked.`,
		Example: "  pontoon replication digest",
		Args:    wantArgs(),
	}
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		answer, err := c.call(cmd.Context(), http.MethodGet, "/v1/replication/digest", nil, digestTimeout)
		if err != nil {
			return err
		}
		if err := show(a, format.value, answer, drawComparisons); err != nil {
			return err
		}
		var all []web.FlowComparison
		if err := decode(answer, &all); err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(c web.FlowComparison) bool { return !c.Equal }) {
			return errors.New("not every peer holds the same flows: ask again, and see `pontoon replication` if it lasts")
		}
		return nil
	}
	return cmd
}

func drawComparisons(t *table, all []web.FlowComparison) {
	t.head("PEER", "SAME FLOWS", "COMPARED", "DIFFER", "ERROR")
	for _, c := range all {
		same := cell{"yes", good}
		if !c.Equal {
			same = cell{"no", bad}
		}
		t.row(c.Peer, same, c.Buckets, c.Differ, c.Error)
	}
}

func drawWholeReplication(t *table, r web.Replication) {
	if len(r.Peers) == 0 {
		t.line("%s copies its flows to nobody: it has no peers", r.Self)
	}
	for _, p := range r.Peers {
		drawPeerOut(t, r, p)
		drawPeerIn(t, r, p)
		t.line("")
	}
	v := r.LastTakeover
	if v == nil {
		t.line("%s has not become master since its daemon was started", r.Self)
		return
	}
	after := ""
	if v.From != "" && v.From != r.Self {
		after = fmt.Sprintf(" after %s", v.From)
	}
	t.line("%s became master of %s%s %s ago and has adopted %s since",
		r.Self, v.Instance, after, ago(v.At), count(int(v.Adopted), "connection"))
}

func drawPeerOut(t *table, r web.Replication, p web.PeerReplication) {
	t.row(fmt.Sprintf("%s to %s", r.Self, p.Peer), cellFor(replicationCells, p.State))
	t.row("  for", ago(p.Since))
	t.row("  records", fmt.Sprintf("%d sent, %d acknowledged, %d lost with streams, %d dropped", p.Sent, p.Acked, p.Abandoned, p.Dropped))
	t.row("  lag now", fmt.Sprintf("%.1f ms, %s", p.LagMS, count(int(p.LagRecords), "record")))
	t.row("  lag of the last minute", fmt.Sprintf("half within %.1f ms, 99 in 100 within %.1f ms", p.LagP50MS, p.LagP99MS))
	t.row("  resyncs", resyncsOf(p))
	t.row("  last snapshot", fmt.Sprintf("%s in %.0f ms", count(int(p.Snapshot.Records), "record"), p.Snapshot.MS))
	t.row("  comparisons", fmt.Sprintf("%d; repaired %s in %s", p.Digest.Rounds,
		count(int(p.Digest.RecordsRepaired), "record"), count(int(p.Digest.BucketsRepaired), "bucket")))
	t.row("  of dead nodes", fmt.Sprintf("%d comparisons; gave %s", p.Digest.OrphanRounds, count(int(p.Digest.OrphansSent), "record")))
	t.row("  versions", fmt.Sprintf("stream %d, records %d", p.Protocol, p.RecordVersion))
	if p.LastError != "" {
		t.row("  last error", p.LastError)
	}
}

func drawPeerIn(t *table, r web.Replication, p web.PeerReplication) {
	in := p.Inbound
	t.row(fmt.Sprintf("%s to %s", p.Peer, r.Self), cellFor(inboundCells, in.State))
	t.row("  for", ago(in.Since))
	t.row("  records", fmt.Sprintf("%d written here, %.0f a second, version %d", in.Received, in.AppliedPerSecond, in.RecordVersion))
	t.row("  snapshots", fmt.Sprintf("%d, and %s", in.Snapshots, count(int(in.Repairs), "repair")))
	t.row("  of dead nodes", fmt.Sprintf("got %s", count(int(in.Orphans), "record")))
	if in.LastError != "" {
		t.row("  last error", in.LastError)
	}
}

var inboundCells = map[web.ReplicationState]cell{
	web.ReplicationStreaming: {"streaming", good},
	web.ReplicationSnapshot:  {"receiving snapshot", warn},
	web.ReplicationDown:      {"not connected", bad},
}

// resyncsOf says how often a peer got everything again, and why.
func resyncsOf(p web.PeerReplication) string {
	var causes []string
	for _, cause := range slices.Sorted(maps.Keys(p.ResyncCauses)) {
		causes = append(causes, fmt.Sprintf("%s %d", cause, p.ResyncCauses[cause]))
	}
	text := fmt.Sprint(p.Resyncs)
	if len(causes) > 0 {
		text += " (" + strings.Join(causes, ", ") + ")"
	}
	if last := p.LastResync; last != nil {
		text += fmt.Sprintf("; the last %s ago: %s", ago(last.At), last.Cause)
		if last.Text != "" {
			text += ", " + last.Text
		}
	}
	return text
}

// ago is how long ago an instant is, for people.
func ago(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return max(time.Since(at), 0).Round(time.Second).String()
}
