package node

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"pontoon/fsm"
)

// dues is what a leader has to commit at one moment: verdicts, and what nodes say
// of themselves. It goes into one entry of the log, so that one election follows from all
// of it: of two nodes that die together none inherits from the other.
type dues struct {
	verdicts []fsm.NodeVerdict
	reports  []fsm.NodeReport
}

// duesOf puts together what was found. Of several verdicts on a node the first counts, and a
// report of a node on which there is one has to wait: it may be of a life that has just ended.
func duesOf(verdicts []fsm.NodeVerdict, reports []fsm.NodeReport) dues {
	var out dues
	for _, v := range verdicts {
		if !out.judges(v.Node) {
			out.verdicts = append(out.verdicts, v)
		}
	}
	for _, r := range reports {
		if !out.judges(r.Node) {
			out.reports = append(out.reports, r)
		}
	}
	return out
}

func (d dues) judges(n fsm.NodeID) bool {
	return slices.ContainsFunc(d.verdicts, func(v fsm.NodeVerdict) bool { return v.Node == n })
}

// command is the entry; nil when nothing is due.
func (d dues) command() fsm.Command {
	var all []fsm.Command
	for _, v := range d.verdicts {
		all = append(all, v)
	}
	for _, r := range d.reports {
		all = append(all, r)
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return fsm.Batch{Commands: all}
}

// decisionsOf is this leader's half of the timelines of what follows from d.
func (m *member) decisionsOf(d dues, now time.Time) []decision {
	var out []decision
	enough, silent := majority(len(m.store.State().Nodes())), m.gossip.silentSince()
	for _, v := range d.verdicts {
		since, known := silent[string(v.Node)]
		if !known {
			since = now
		}
		out = append(out, m.decisions.ofDeath(v.Node, m.reports.lossOf(v.Node, now), enough, since, now))
	}
	for _, r := range d.reports {
		out = append(out, m.reports.decisionOf(r, now))
	}
	return out
}

// commitDues commits what is due. What could not be committed is due again.
func (m *member) commitDues(d dues) {
	cmd := d.command()
	if cmd == nil {
		return
	}
	start := time.Now()
	decided := m.decisionsOf(d, start)
	if err := m.commitDecisions(cmd, decided); err != nil {
		level := slog.LevelDebug
		if len(d.verdicts) > 0 {
			level = slog.LevelWarn
		}
		m.logger.Log(context.Background(), level, "verdicts and reports not committed", "verdicts", len(d.verdicts), "reports", len(d.reports), "err", err)
		return
	}
	m.raft.spread() // the successor may be a follower
	for _, v := range d.verdicts {
		m.logger.Info("verdict", "node", v.Node, "alive", v.Alive, "reason", v.Reason, "took", time.Since(start))
	}
}

// commitDecisions is commitDuty of what may move instances; it keeps this leader's
// half of the timelines.
func (m *member) commitDecisions(cmd fsm.Command, all []decision) error {
	b, err := fsm.Encode(cmd)
	if err != nil {
		return fmt.Errorf("encode %T: %w", cmd, err)
	}
	index, err := m.applyBytes(b)
	if err == nil {
		now := time.Now()
		for i := range all {
			all[i].committed = now
		}
		m.decisions.put(index, all...)
	}
	return err
}
