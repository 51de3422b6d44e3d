package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/transport"
	"pontoon/web"
)

const (
	// fencedLook is how long the nodes that are said to be fenced are tried. A
	// kernel answers in a millisecond; a lost SYN is repeated after a second.
	fencedLook = 2 * time.Second
	// recoverTimeout bounds the time from the rebuilt files to the committed recovery.
	recoverTimeout = 30 * time.Second
)

// Recover implements web.ClusterOps. It makes this node a cluster of one, with
// its configuration, its name and its connections; see rebuild.go for what an
// interruption leaves. The data plane is not touched.
func (d *daemon) Recover(ctx context.Context, req web.RecoverRequest, progress func(string)) (web.RecoverResult, error) {
	d.op.Lock()
	defer d.op.Unlock()
	var res web.RecoverResult
	m, err := d.current()
	if err != nil {
		return res, err
	}
	fenced := slices.Clone(req.Fenced)
	slices.Sort(fenced)
	fenced = slices.Compact(fenced)
	facts, addresses, err := m.recoverFacts()
	if err != nil {
		return res, err
	}
	if err := checkRecover(facts, fenced); err != nil {
		return res, err
	}
	progress(fmt.Sprintf("looking for %s for %s", joined(fenced), fencedLook))
	if err := m.checkFenced(ctx, addresses); err != nil {
		return res, err
	}
	if m.raft.hasQuorum() { // while we looked
		return res, checkRecover(recoverFacts{led: true}, nil)
	}
	r := recovery{Number: m.store.State().Cluster().Recoveries + 1, Fenced: fenced, At: time.Now().UTC()}
	d.logger.Warn("rebuilding the cluster from this node", "fenced", fenced, "gen", m.store.State().Index())
	d.events.add(Event{Kind: web.EventRecovery, Node: facts.self, Text: fmt.Sprintf("an operator has the cluster rebuilt from %s, with %s fenced", facts.self, joined(fenced))})
	progress("rebuilding the Raft group from this node; its data plane goes on forwarding")
	next, index, err := d.rebuild(r)
	if err != nil {
		return res, err
	}
	progress("waiting until this node leads")
	if err := next.waitRecovered(ctx, r.Number); err != nil {
		return res, err
	}
	cluster := next.store.State().Cluster()
	progress(fmt.Sprintf("%s no member any more, and the gossip key is a new one", are(cluster.Without)))
	d.events.add(Event{Kind: web.EventRecovery, Node: facts.self, Index: next.store.State().Index(), Text: fmt.Sprintf("the cluster was rebuilt from %s without %s", facts.self, joined(fenced))})
	return web.RecoverResult{ClusterID: cluster.ID, Survivor: facts.self, Fenced: fenced, Recovered: r.Number, Index: index}, nil
}

// recoverFacts gathers what checkRecover judges by, and where the others are.
func (m *member) recoverFacts() (recoverFacts, map[fsm.NodeID]string, error) {
	f := recoverFacts{self: fsm.NodeID(m.cfg.Name), removed: m.removed(), led: m.raft.hasQuorum()}
	servers, err := m.raft.servers()
	if err != nil {
		return f, nil, err
	}
	at := map[fsm.NodeID]string{}
	for _, srv := range servers {
		at[fsm.NodeID(srv.ID)] = string(srv.Address)
		if string(srv.ID) == m.cfg.Name {
			f.voter = srv.Suffrage == raft.Voter
		}
	}
	for _, n := range m.store.State().Nodes() {
		at[n.Name] = n.Address
	}
	delete(at, f.self)
	for n := range at {
		f.others = append(f.others, n)
	}
	slices.Sort(f.others)
	return f, at, nil
}

// checkFenced looks for signs of life of the nodes at these addresses: their
// kernels on the cluster port, their daemons in gossip, their data planes in
// echoes. It says nothing about a machine that cannot be reached from here.
func (m *member) checkFenced(ctx context.Context, at map[fsm.NodeID]string) error {
	if err := m.checkOwnLinks(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fencedLook)
	defer cancel()
	var mu sync.Mutex
	signs := m.signsOfLife(at)
	var g errgroup.Group
	for name, address := range at {
		g.Go(func() error {
			tick := time.NewTicker(fencedLook / 8)
			defer tick.Stop()
			for ctx.Err() == nil {
				if transport.HostAlive(ctx, address) {
					mu.Lock()
					defer mu.Unlock()
					signs[name] = "its kernel at " + address
					return nil
				}
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
			return nil
		})
	}
	_ = g.Wait() // the answers are in signs
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for name, sign := range m.signsOfLife(at) {
		signs[name] = sign
	}
	if len(signs) == 0 {
		return nil
	}
	var texts []string
	for _, name := range sortedNames(signs) {
		texts = append(texts, fmt.Sprintf("%s still answers (%s)", name, signs[name]))
	}
	return &remoteError{kind: fsm.ErrInUse, text: "cannot recover: " + strings.Join(texts, ", ") + ": fence it first, by its power or its network"}
}

func sortedNames(of map[fsm.NodeID]string) []fsm.NodeID {
	var out []fsm.NodeID
	for n := range of {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// signsOfLife is what gossip and the echoes say of these nodes.
func (m *member) signsOfLife(of map[fsm.NodeID]string) map[fsm.NodeID]string {
	signs := map[fsm.NodeID]string{}
	for _, g := range m.gossip.members() {
		if _, asked := of[fsm.NodeID(g.Node)]; asked && g.State == transport.GossipAlive {
			signs[fsm.NodeID(g.Node)] = "its daemon in gossip"
		}
	}
	for _, b := range m.detector.status(m.store.State()) {
		if _, asked := of[b.Peer]; !asked || b.State != detect.Up.String() && b.Why != string(detect.Refused) {
			continue
		}
		what := "an echo from "
		if b.Kind == web.BFDAsync {
			what = "its daemon by BFD at "
		}
		signs[b.Peer] = what + b.Address
	}
	return signs
}

// checkOwnLinks refuses when nobody could answer, because this machine is cut off.
func (m *member) checkOwnLinks() error {
	look, what := m.links, "data plane interface"
	if m.isWitness() {
		look, what = m.allLinks, "interface"
	}
	links, err := look()
	if err != nil && len(links) == 0 {
		return err
	}
	for _, l := range links {
		if l.Up {
			return nil
		}
	}
	return &remoteError{kind: fsm.ErrInUse, text: "cannot recover: no " + what + " of this node has a carrier, so nobody could answer: mend its network first"}
}

// rebuild stops the member, rewrites the group on disk and starts the member
// again. A member that cannot be started ends the daemon, as at any start.
func (d *daemon) rebuild(r recovery) (m *member, index uint64, err error) {
	ms, err := loadMembership(d.cfg.DataDir)
	if err != nil {
		return nil, 0, err
	}
	id, err := transport.LoadIdentity(d.cfg.DataDir)
	if err != nil {
		return nil, 0, err
	}
	if err := r.save(d.cfg.DataDir); err != nil {
		return nil, 0, err
	}
	d.setAbsent(&remoteError{kind: web.ErrNoLeader, text: "the cluster is being rebuilt from this node: try again in a moment"})
	defer d.setAbsent(nil)
	if err := d.stopMember(); err != nil {
		d.logger.Warn("the member did not stop cleanly", "err", err)
	}
	index, rerr := rebuildRaft(raftDir(d.cfg.DataDir), d.cfg.Name, d.cfg.Cluster.Address, d.logger)
	m, err = d.startMember(id, ms, false)
	if err != nil {
		err = fmt.Errorf("start again as a member: %w", err)
		d.group.Go(func() error { return err })
	}
	return m, index, errors.Join(rerr, err)
}

func (d *daemon) setAbsent(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.absent = why
}

// waitRecovered waits until this node has committed its recovery of this number.
func (m *member) waitRecovered(ctx context.Context, number uint64) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	for {
		changed := m.store.Changed()
		if m.store.State().Cluster().Recoveries >= number {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the group is rebuilt, but this node did not lead within %s: it goes on, look at `pontoon status`", recoverTimeout)
		case <-changed:
		}
	}
}
