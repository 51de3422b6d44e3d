package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// report is what a node tells the leader about itself, a few times a second
// and at each change. The leader commits only what elections depend on.
type report struct {
	Node    string `json:"node"`
	Applied uint64 `json:"applied"` // Raft index
	State   uint64 `json:"state"`   // index of the state it was made at
	Plan    uint64 `json:"plan"`    // index its drivers have reached
	Ready   bool   `json:"ready"`
	LinksUp bool   `json:"links_up"`
	InSync  bool   `json:"in_sync"`
	// Reborn says that this node's kernel is new and no verdict of its death is known
	// to it that would say so.
	Reborn bool `json:"reborn,omitempty"`
	// Unsure says that this node has taken over the data plane of its earlier
	// life and has not compared it with the state yet: Ready and LinksUp are not
	// known, and what the cluster last knew of them stands.
	Unsure  bool   `json:"unsure,omitempty"`
	Version string `json:"version"`
	// LeaseMS is for how long from this report on its kernel may answer for its VIPs without it. With
	// Rests it is about to stop in order, and says nothing more.
	LeaseMS float64 `json:"lease_ms,omitempty"`
	Rests   bool    `json:"rests,omitempty"`
	// Links is where this node's data plane can be probed, Control where only its daemon can be
	// spoken to. Lost is whom it reaches by no path any more, LostLinks where the data planes of
	// others do not answer it.
	Links     []linkAddr   `json:"links,omitempty"`
	Control   []linkAddr   `json:"control,omitempty"`
	Lost      []fsm.NodeID `json:"lost,omitempty"`
	LostLinks []linkRef    `json:"lost_links,omitempty"`
	// For the timelines of failovers: since when Lost is so, and how long before it was sent this
	// report began to be true. Reads is the newest version of commands this node can read.
	Losses    []loss  `json:"losses,omitempty"`
	ChangedMS float64 `json:"changed_ms,omitempty"`
	Reads     int     `json:"reads,omitempty"`
}

// same says whether two reports say the same of the node at two moments.
func (r report) same(o report) bool {
	r.Losses, r.ChangedMS, r.LeaseMS = o.Losses, o.ChangedMS, o.LeaseMS
	return reflect.DeepEqual(r, o)
}

// reportReply gives each reporter what the leader has committed and what all
// others said, so that any node can show the whole cluster.
type reportReply struct {
	Commit  uint64       `json:"commit"`
	Reports []agedReport `json:"reports"`
	Rests   bool         `json:"rests,omitempty"` // it was noted that the reporter rests
}

// agedReport is a report with its age, because clocks of nodes may differ.
type agedReport struct {
	report
	AgeMS int64 `json:"age_ms"`
}

// reportTable keeps the last report of each node.
type reportTable struct {
	mu   sync.Mutex
	rows map[string]timedReport
}

type timedReport struct {
	report
	at time.Time
}

func newReportTable() *reportTable { return &reportTable{rows: map[string]timedReport{}} }

// put stores r as heard at now and says whether it differs from the last one.
func (t *reportTable) put(r report, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, ok := t.rows[r.Node]
	t.rows[r.Node] = timedReport{r, now}
	return !ok || !old.report.same(r)
}

// replace takes over what the leader knows; own is this node's own row, which
// nobody knows better.
func (t *reportTable) replace(all []agedReport, own string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range all {
		if r.Node != own {
			t.rows[r.Node] = timedReport{r.report, now.Add(-time.Duration(r.AgeMS) * time.Millisecond)}
		}
	}
}

// all returns the rows by name, with their age at now, and forgets those of
// nodes keep does not know.
func (t *reportTable) all(now time.Time, keep func(string) bool) []agedReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []agedReport
	for name, r := range t.rows {
		if !keep(name) {
			delete(t.rows, name)
			continue
		}
		out = append(out, agedReport{r.report, now.Sub(r.at).Milliseconds()})
	}
	slices.SortFunc(out, func(a, b agedReport) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// states is up to which state each node had applied when it reported last.
func (t *reportTable) states() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string]uint64, len(t.rows))
	for name, r := range t.rows {
		out[name] = r.State
	}
	return out
}

func (m *member) knownNode(name string) bool {
	_, ok := m.store.State().Node(fsm.NodeID(name))
	return ok
}

// serveReport takes a report; only the leader has a use for it.
func (m *member) serveReport(w http.ResponseWriter, r *http.Request) {
	var rep report
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&rep); err != nil {
		answer(w, 0, nil, err)
		return
	}
	if peer := peerFrom(r.Context()); peer.name != rep.Node {
		answer(w, 0, nil, errorOf("invalid", "node "+peer.name+" reported as "+rep.Node))
		return
	}
	reply, err := m.takeReport(rep)
	answer(w, 0, reply, err)
}

func (m *member) takeReport(rep report) (reportReply, error) {
	// What it says is acted upon by commits, which prove the leadership themselves, so it does not
	// wait for the proof that the answer needs: it may tell of a death.
	if m.leadTerm.Load() != 0 && m.reports.put(rep, time.Now()) {
		m.wakeLeader()
	}
	commit, err := m.provenCommit()
	if err != nil {
		return reportReply{}, errNotLeader
	}
	return reportReply{Commit: commit, Reports: m.reports.all(time.Now(), m.knownNode), Rests: rep.Rests}, nil
}

// provenCommit returns the commit index of the cluster at some moment of the
// call. Leading is proved by a quorum, not believed: a leader that slept, or
// that was voted out and has not heard of it, finds out here. And a leader that
// has not applied yet what its predecessors committed does not know the index.
func (m *member) provenCommit() (uint64, error) {
	term := m.leadTerm.Load()
	if term == 0 || !m.raft.isLeader() || m.raft.CurrentTerm() != term {
		return 0, errNotLeader
	}
	commit := m.raft.CommitIndex()
	if err := m.verifyLeader(); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	return commit, nil
}

const (
	// reportEvery is the pace of reports when nothing changes.
	reportEvery = 300 * time.Millisecond
	// reportRetry is the pace while no leader takes them.
	reportRetry = 50 * time.Millisecond
	// reportTimeout is well below contactLost: a report that waits for a leader
	// that just died must not hold up the one to its successor.
	reportTimeout = 500 * time.Millisecond
)

// reportLoop keeps the leader informed of this node, and this node of the
// leader's commit index.
func (m *member) reportLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-m.reportNow:
		}
		next := min(reportEvery, m.cfg.Failover.Lease/3)
		err := m.reportOnce(ctx)
		m.updatePaths()
		if err != nil {
			next = reportRetry
			if !errors.Is(err, web.ErrNoLeader) { // which has an event of its own
				m.logger.Debug("report to the leader failed", "err", err)
			}
		}
		timer.Reset(next)
	}
}

func (m *member) reportOnce(ctx context.Context) error {
	rep, asked := m.selfReport(), time.Now()
	if m.leads() {
		if m.reports.put(rep, time.Now()) {
			m.wakeLeader()
		}
		commit, err := m.provenCommit()
		if err != nil {
			return err
		}
		m.contact.answer(asked, commit)
		return m.renewLease()
	}
	leader := m.leaderToTell()
	if leader == "" {
		return web.ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	m.reporting.Store(&cancel)
	var reply reportReply
	if err := m.peers.callFor(ctx, leader, "/internal/report", rep, &reply); err != nil {
		return err
	}
	now := time.Now()
	m.contact.answer(asked, reply.Commit)
	if err := m.renewLease(); err != nil {
		return err
	}
	if rep.Rests && reply.Rests {
		wake(m.rest.noted)
	}
	m.reports.put(rep, now)
	m.reports.replace(reply.Reports, m.cfg.Name, now)
	if m.reborn.heldBack() {
		m.wakeDriver()
	}
	return nil
}

// dropReport ends a report under way: its leader is gone.
func (m *member) dropReport() {
	if cancel := m.reporting.Load(); cancel != nil {
		(*cancel)()
	}
}

// selfReport is this node as it is now.
func (m *member) selfReport() report {
	l, s := m.local.get(), m.store.State()
	where, seen := m.whereabouts(), m.detector.sighting()
	me, _ := s.Node(fsm.NodeID(m.cfg.Name))
	lease, rests := m.leaseTold()
	return report{
		Reborn: me.Died == m.died.Load() && m.reborn.waits(time.Now(), m.raft.hasQuorum()),
		Node:   m.cfg.Name, Applied: m.raft.AppliedIndex(), State: s.Index(), Plan: l.plan,
		Ready: l.ready && m.raft.disk.trouble(time.Now()) == "" && !m.logStuck(), LinksUp: l.linksUp, InSync: m.inSync(s), Unsure: l.unsure, Version: m.version,
		Links: where.links, Control: where.control, Lost: seen.lost, LostLinks: seen.links,
		LeaseMS: millis(lease), Rests: rests,
		Losses: m.detector.losses(time.Now()), ChangedMS: millis(m.local.unchanged(time.Now())), Reads: fsm.CommandVersion,
	}
}
