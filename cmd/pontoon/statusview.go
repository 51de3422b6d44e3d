package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pontoon/web"
)

// drawStatus draws the whole status: a headline, the cluster, then this node.
func drawStatus(t *table, st web.Status) {
	drawHeadline(t, st)
	t.line("")
	drawNodes(t, st.Nodes)
	t.line("")
	drawInstances(t, st.Instances)
	if len(st.Failovers) > 0 {
		last := st.Failovers[0]
		t.line("last moved, %s: %s", last.At.Local().Format(time.DateTime), web.FailoverText(last))
	}
	drawStatusServices(t, st.Services)
	t.line("\nOn %s:", st.Self)
	drawFlowSummary(t, st.Flows)
	drawReplication(t, st.Replication)
	drawBGP(t, st.BGP)
	drawDrops(t, st.Drops)
	drawInterfaces(t, st.Interfaces)
	for i, w := range st.Warnings {
		if i == 0 {
			t.line("")
		}
		t.line("%s", t.paint(cell{"warning: " + w, warn}))
	}
}

func drawHeadline(t *table, st web.Status) {
	styles := map[web.Level]style{web.LevelOK: good, web.LevelWarn: warn, web.LevelBad: bad}
	look, known := styles[st.Summary.Level]
	if !known {
		look = plain
	}
	t.line("%s", t.paint(cell{st.Summary.Text, look}))
	t.line("cluster %s, term %d, applied %d", st.Cluster.ID, st.Cluster.Term, st.Cluster.Applied)
	for _, n := range st.Summary.Notes {
		t.line("%s", t.paint(cell{n, look}))
	}
}

func drawStatusServices(t *table, services []web.ServiceStatus) {
	if len(services) == 0 {
		t.line("\nNo services yet: see pontoon service create --help")
		return
	}
	t.line("")
	drawServices(t, services)
	t.line("")
	drawEndpoints(t, services)
}

func drawFlowSummary(t *table, f web.FlowCounts) {
	t.line("  flows: %d established (%d owned, %d copies), %d half open, %d adopted, room for %d",
		f.Established, f.Owned, f.Replica, f.HalfOpen, f.Adopted, f.Max)
}

func drawReplication(t *table, peers []web.PeerReplication) {
	if len(peers) == 0 {
		t.line("  replication: no peers")
		return
	}
	t.head("  REPLICATION TO", "STATE", "SENT", "ACKED", "LAG MS", "RESYNCS", "DROPPED")
	for _, p := range peers {
		lag := "" // nobody knows how far behind a peer is that is not there
		if p.State != web.ReplicationDown {
			lag = fmt.Sprintf("%.1f", p.LagMS)
		}
		t.row("  "+string(p.Peer), cellFor(replicationCells, p.State), p.Sent, p.Acked, lag, p.Resyncs, p.Dropped)
	}
}

var replicationCells = map[web.ReplicationState]cell{
	web.ReplicationStreaming: {"streaming", good},
	web.ReplicationSnapshot:  {"sending snapshot", warn},
	web.ReplicationDown:      {"not connected", bad},
}

// drawDrops lists the reasons that happened; most never do.
func drawDrops(t *table, drops map[string]uint64) {
	var words []string
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		if n := drops[reason]; n > 0 {
			words = append(words, fmt.Sprintf("%s %d", reason, n))
		}
	}
	if len(words) > 0 {
		t.line("  packets dropped: %s", strings.Join(words, ", "))
	}
}

func drawInterfaces(t *table, interfaces []web.InterfaceStatus) {
	var words []string
	for _, i := range interfaces {
		state := "up"
		if !i.Up {
			state = "no carrier"
		}
		hook := i.Hook
		if hook == "" {
			hook = "not attached"
		}
		words = append(words, fmt.Sprintf("%s %s (%s)", i.Name, state, hook))
	}
	if len(words) > 0 {
		t.line("  interfaces: %s", strings.Join(words, ", "))
	}
	drawReasons(t, interfaces)
}

// drawReasons says why interfaces are attached as they are, those alike in one line.
func drawReasons(t *table, interfaces []web.InterfaceStatus) {
	names := map[string][]string{}
	var reasons []string
	for _, i := range interfaces {
		if i.HookReason == "" {
			continue
		}
		if names[i.HookReason] == nil {
			reasons = append(reasons, i.HookReason)
		}
		names[i.HookReason] = append(names[i.HookReason], i.Name)
	}
	for _, reason := range reasons {
		t.line("    hook of %s: %s", strings.Join(names[reason], ", "), reason)
	}
}
