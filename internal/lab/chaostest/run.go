package chaostest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/lab/arping"
	"pontoon/internal/lab/traffic"
)

// Config says what one run is of.
type Config struct {
	// Binary is the product's executable; if the plan needs that, one that was built
	// with the tag pontoon_faults.
	Binary string
	// Plan is what happens; Draw makes one.
	Plan Plan
	// Limits decide for how long the run waits for the cluster to be whole.
	Limits Limits
	// Keep is the directory that gets the daemons' logs; "" for nowhere.
	Keep   string
	Logger *slog.Logger // the lab's; may be nil
}

const (
	webPort  = 8080
	webConns = 60
	// settleTime is how long the whole cluster is watched at the end.
	settleTime = 1500 * time.Millisecond
	// progressTime is how long a connection may take to go on: TCP tries again
	// after twice the time that it has been silent.
	progressTime = 25 * time.Second
)

// heldVIP is one that is claimed also without a quorum.
func heldVIP() netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 80, 222}) }

// clientsVIPs are those that clients ask for.
func clientsVIPs() []netip.Addr {
	return []netip.Addr{lab.ServiceVIP(), lab.ServiceVIP6(), heldVIP()}
}

// run is one run under way.
type run struct {
	cfg    Config
	lab    *lab.Lab
	began  time.Time
	cables *cables
	asking []*arping.Prober
	macs   map[string]string // hardware address to node
	sets   []trafficSet

	mu     sync.Mutex
	h      *History
	busy   map[string]bool
	forgot map[string]time.Duration // nodes that do not know the flows, since when
	away   map[string]bool          // of these, those that are not back yet
	joins  map[string]int           // how often each has joined anew
	master string
	leader string
}

// trafficSet is one service's connections.
type trafficSet struct {
	name    string
	clients *traffic.Clients
	window  *traffic.Window
}

// Run lets the plan happen to a fresh cluster. The error is of the run itself;
// what the product did wrong is for Check to find.
func Run(ctx context.Context, cfg Config) (h *History, err error) {
	shape := lab.Config{Binary: cfg.Binary, Topology: lab.TwoLeg, Nodes: 3, Clients: 2, Endpoints: 3, Logger: cfg.Logger}
	if _, disks := cfg.Plan.Needs(); disks {
		shape.DiskSize = diskSize
	}
	l, err := lab.New(shape)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || cfg.Keep != "" {
			err = errors.Join(err, keepLogs(l, cfg.Keep))
		}
		err = errors.Join(err, l.Close())
	}()
	r := &run{
		cfg: cfg, lab: l, began: time.Now(), macs: map[string]string{}, busy: map[string]bool{}, forgot: map[string]time.Duration{},
		away: map[string]bool{}, joins: map[string]int{},
		h: &History{Seed: cfg.Plan.Seed, VIPs: map[string]string{}, Held: []string{heldVIP().String()}},
	}
	for _, vip := range append(clientsVIPs(), lab.GatewayVIP()) {
		r.h.VIPs[vip.String()] = "default"
	}
	for _, n := range l.Nodes() {
		r.h.Nodes = append(r.h.Nodes, n.Name())
		for _, mac := range n.MACs() {
			r.macs[mac.String()] = n.Name()
		}
	}
	if err := r.raise(ctx); err != nil {
		return r.h, err
	}
	return r.h, r.perform(ctx)
}

func (r *run) now() time.Duration { return time.Since(r.began) }

// perform runs observers and faults against the cluster that raise made.
func (r *run) perform(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	observing, stop := context.WithCancel(ctx)
	var err error
	defer stop()
	if r.cables, err = openCables(observing, g, r.lab.Nodes()); err == nil {
		err = r.observe(observing, g)
	}
	if err == nil {
		err = r.story(ctx, observing, g)
	}
	r.cables.close()
	stop()
	err = errors.Join(err, g.Wait())
	r.collect()
	return err
}

// observe starts everything that watches and loads the cluster.
func (r *run) observe(ctx context.Context, g *errgroup.Group) error {
	for _, at := range []struct {
		host *lab.Host
		vips []netip.Addr
	}{{r.lab.Clients()[1], clientsVIPs()}, {r.lab.Endpoints()[2], []netip.Addr{lab.GatewayVIP()}}} {
		p, err := arping.New(arping.Config{Do: at.host.Do, Interface: "eth1", Targets: at.vips})
		if err != nil {
			return err
		}
		r.asking = append(r.asking, p)
		g.Go(func() error { return p.Run(ctx) })
	}
	for _, ep := range r.lab.Endpoints()[:2] {
		srv, err := traffic.NewServer(traffic.ServerConfig{Name: ep.Name()})
		if err != nil {
			return err
		}
		ln, err := ep.Listen(endpoint(ep))
		if err != nil {
			return err
		}
		g.Go(func() error { return srv.Serve(ctx, ln) })
	}
	for i, mode := range modes {
		c, err := traffic.NewClients(traffic.ClientsConfig{
			Dial: r.lab.Clients()[0].Dial, Target: netip.AddrPortFrom(lab.ServiceVIP(), uint16(80+i)), Count: webConns / (i + 1),
		})
		if err != nil {
			return err
		}
		if err := c.Open(ctx); err != nil {
			return err
		}
		g.Go(func() error { return c.Run(ctx) })
		r.sets = append(r.sets, trafficSet{mode, c, nil})
	}
	return r.waitWhole(ctx, stepTime) // all flows are everywhere, all who ask are at work
}

// story is the run proper: the history begins here.
func (r *run) story(ctx, observing context.Context, g *errgroup.Group) error {
	s, err := r.lab.Nodes()[0].Status(ctx)
	if err != nil {
		return err
	}
	r.master, r.leader, r.began = s.Master("default"), s.Cluster.Leader, time.Now()
	for i := range r.sets {
		r.sets[i].window = r.sets[i].clients.Window()
	}
	for _, n := range r.lab.Nodes() {
		g.Go(func() error { return r.watch(observing, n) })
	}
	wctx, stopWriter := context.WithCancel(ctx)
	var writer, faults errgroup.Group
	writer.Go(func() error { return r.write(wctx) })
	for _, f := range r.cfg.Plan.Faults {
		faults.Go(func() error { return r.play(ctx, f) })
	}
	err = errors.Join(faults.Wait(), r.heal(ctx))
	r.h.Healed = r.now()
	if err == nil && ctx.Err() == nil {
		if why := r.waitWhole(ctx, r.cfg.Limits.Converge+10*time.Second); why != nil {
			r.h.Why = why.Error()
			r.stacks(ctx)
		} else {
			r.h.Converged = r.now()
		}
	}
	stopWriter()
	err = errors.Join(err, writer.Wait())
	if err == nil && r.h.Converged != 0 {
		err = r.settle(ctx)
	}
	for _, s := range r.sets {
		t := s.window.Result()
		r.h.Traffic = append(r.h.Traffic, Traffic{s.name, t.Connections, t.Reset, t.Stalled, t.Corrupted, t.Blackout, t.Errors})
	}
	return err
}

// settle watches the whole cluster for a while and reads everything back.
func (r *run) settle(ctx context.Context) error {
	pass(ctx, settleTime)
	for _, s := range r.sets {
		s.window.Mark()
	}
	ctx, cancel := context.WithTimeout(ctx, progressTime+stepTime)
	defer cancel()
	for _, s := range r.sets {
		pctx, stop := context.WithTimeout(ctx, progressTime)
		_ = s.window.Wait(pctx) // who stands still is in the result
		stop()
	}
	// Not before everybody has carried out the same: the last write may be under way.
	if err := r.waitWhole(ctx, stepTime); err != nil {
		return err
	}
	return r.finals(ctx)
}

// waitWhole waits until the cluster is whole and has stayed so, under one master,
// for a moment: the end of a fault may be felt a little later.
func (r *run) waitWhole(ctx context.Context, d time.Duration) error {
	const stays = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var since time.Time
	var was string
	return lab.WaitFor(ctx, "the cluster to be whole", func(ctx context.Context) error {
		master, err := r.whole(ctx)
		if err != nil {
			was = ""
			return err
		}
		if master != was {
			since, was = time.Now(), master
		}
		if time.Since(since) < stays {
			return fmt.Errorf("it is, under %s, but not for long yet", master)
		}
		return nil
	})
}

// whole is an error unless every node says that all are healthy and agrees on what
// is committed and who is master, and nobody but that one answers for the VIPs.
func (r *run) whole(ctx context.Context) (master string, err error) {
	applied := uint64(0)
	for i, n := range r.lab.Nodes() {
		s, err := n.Status(ctx)
		if err != nil {
			return "", err
		}
		if err := s.CheckHealthy(r.h.Nodes...); err != nil {
			return "", fmt.Errorf("seen from %s: %w", n.Name(), err)
		}
		m := s.Master("default")
		if m == "" || (i > 0 && m != master) {
			return "", fmt.Errorf("%s names %q as master and another one %q", n.Name(), m, master)
		}
		// The writer goes on: what counts is that nobody is left behind.
		if i > 0 && s.Cluster.Applied+20 < applied {
			return "", fmt.Errorf("%s has applied %d and another one %d", n.Name(), s.Cluster.Applied, applied)
		}
		master, applied = m, max(applied, s.Cluster.Applied)
	}
	return master, r.onlyAnswers(master)
}

// onlyAnswers is an error unless of late the node alone has answered.
func (r *run) onlyAnswers(master string) error {
	for _, p := range r.asking {
		answers := map[string]int{}
		for _, c := range r.claimsOf(p, p.Since(200*time.Millisecond)) {
			if c.Asked && c.Node != master {
				return fmt.Errorf("%s answers for %s, whose master is %s", c.Node, c.Address, master)
			}
			answers[c.Address]++
		}
		for _, vip := range p.Targets() {
			if answers[vip.String()] < 5 {
				return fmt.Errorf("%s does not answer for %s", master, vip)
			}
		}
	}
	return nil
}

// collect puts into the history what was gathered elsewhere. Nothing runs any more.
func (r *run) collect() {
	r.h.Ended = r.now()
	for _, p := range r.asking {
		for _, c := range r.claimsOf(p, p.Claims()) {
			if c.At >= 0 {
				r.h.Claims = append(r.h.Claims, c)
			}
		}
	}
	slices.SortStableFunc(r.h.Claims, func(a, b Claim) int { return int(a.At - b.At) })
	slices.SortStableFunc(r.h.Views, func(a, b View) int { return int(a.At - b.At) })
	for node, since := range r.forgot {
		r.h.Spans = append(r.h.Spans, Span{node, Forgot, since, r.h.Ended})
	}
	r.readLogs()
}

func endpoint(h *lab.Host) netip.AddrPort { return netip.AddrPortFrom(h.Addr(), webPort) }

func (r *run) note(text string, from, to time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Faults = append(r.h.Faults, FaultRecord{text, from, to})
}

func (r *run) span(n *lab.Node, what []Condition, from, to time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range what {
		r.h.Spans = append(r.h.Spans, Span{n.Name(), w, from, to})
	}
}

// forget notes that a node's kernel is about to lose the flows, and declines when
// nobody else has them. Not before back may it know them again.
func (r *run) forget(n *lab.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	without := len(r.forgot)
	if _, again := r.forgot[n.Name()]; !again {
		without++
	}
	if without == len(r.lab.Nodes()) {
		return false
	}
	if _, again := r.forgot[n.Name()]; !again {
		r.forgot[n.Name()] = r.now()
	}
	r.away[n.Name()] = true
	return true
}

// back notes that a node that forgot is there again. anew is whether it is another
// member than before.
func (r *run) back(n *lab.Node, anew bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.away, n.Name())
	if anew {
		r.joins[n.Name()]++
	}
}

// life tells the lives of a node's memory of the cluster apart.
func (r *run) life(n *lab.Node, p *lab.Process) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return 100*p.PID + r.joins[n.Name()]
}

func (r *run) found(n *lab.Node, line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Logs = append(r.h.Logs, LogFinding{n.Name(), line})
}

func (r *run) saw(v View, s lab.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Views = append(r.h.Views, v)
	if s.Cluster.Quorum {
		r.leader, r.master = s.Cluster.Leader, s.Master("default")
	}
}

func (r *run) masterNow() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.master
}

// stacks has all daemons tell in their logs what they were at: a cluster that does not become whole may have one that hangs.
func (r *run) stacks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, n := range r.lab.Nodes() {
		if err := n.Stacks(ctx); err != nil { // as of one that does not run
			r.h.Why += "; " + err.Error()
		}
	}
}

// keepLogs copies the daemons' logs.
func keepLogs(l *lab.Lab, dir string) error {
	if dir == "" {
		return nil
	}
	var errs []error
	for _, n := range l.Nodes() {
		errs = append(errs, copyFile(n.LogFile(), filepath.Join(dir, n.Name()+".log")))
	}
	return errors.Join(errs...)
}

// Summary is one line on a run.
func Summary(h *History, p Plan, bad []Violation) string {
	verdict := "clean"
	if len(bad) > 0 {
		verdict = fmt.Sprintf("%d VIOLATIONS", len(bad))
	}
	var silences []string
	for _, address := range sortedKeys(h.VIPs) {
		silences = append(silences, longestSilence(h, address).Round(time.Millisecond).String())
	}
	lost := 0
	var blackout time.Duration
	for _, t := range h.Traffic {
		lost += t.Reset + t.Stalled + t.Corrupted
		blackout = max(blackout, t.Blackout)
	}
	return fmt.Sprintf("seed %d: %s; whole %s after the last; longest silence %s; blackout %s; %d connections lost; %d writes: %s",
		h.Seed, p, (h.Converged - h.Healed).Round(10*time.Millisecond), strings.Join(silences, " and "), blackout.Round(time.Millisecond),
		lost, len(h.Writes), verdict)
}

// longestSilence is how long nobody answered for an address at most.
func longestSilence(h *History, address string) (longest time.Duration) {
	last := time.Duration(0)
	for _, c := range h.answersFor(address) {
		longest, last = max(longest, c.At-last), c.At
	}
	return max(longest, h.Ended-last)
}
