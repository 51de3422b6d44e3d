package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
)

// ErrClosed is returned for what is asked of a lab after its Close or Release.
var ErrClosed = errors.New("the lab is closed")

// reapTimeout bounds how long Close waits for killed processes to be gone. A
// process in the middle of a long BPF load may need a moment.
const reapTimeout = 10 * time.Second

// Lab is one network with what runs in it. Its methods are safe for
// concurrent use, but two failures on one node at a time make no sense.
type Lab struct {
	cfg      Config
	prefix   string
	dir      string
	segments map[string]*segment
	hosts    map[string]*Host
	nodes    []*Node
	clients  []*Host
	eps      []*Host
	routers  []*Router

	ctx      context.Context // ends with Close: what asks after it gets ErrClosed
	cancel   context.CancelFunc
	group    errgroup.Group // the launcher and one reaper for each process
	launches chan launch

	launcherDone chan struct{} // closed when the launcher has ended

	mu     sync.Mutex // guards the rest
	rec    record
	procs  []*Process
	closed bool
}

// New builds the network cfg asks for. Nothing runs in it yet. When it fails
// half way it removes what it had made.
func New(cfg Config) (*Lab, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("lab configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	l := &Lab{
		cfg: cfg, segments: map[string]*segment{}, hosts: map[string]*Host{},
		launches: make(chan launch), launcherDone: make(chan struct{}),
	}
	id, err := l.claimPrefix()
	if err != nil {
		return nil, err
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.group.Go(l.runLauncher)
	if err := l.build(planLayout(cfg, id)); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", l.prefix, err), l.Close())
	}
	l.cfg.Logger.Info("lab built", "prefix", l.prefix, "dir", l.dir)
	return l, nil
}

// claimPrefix picks a prefix nobody uses and makes the lab's directory.
func (l *Lab) claimPrefix() (id [2]byte, err error) {
	for range 16 {
		if _, err := rand.Read(id[:]); err != nil {
			return id, fmt.Errorf("pick lab prefix: %w", err)
		}
		l.prefix = "pt" + hex.EncodeToString(id[:])
		l.dir = filepath.Join(l.cfg.Dir, l.prefix)
		used, err := namespacesOf(l.prefix)
		if err != nil {
			return id, err
		}
		if len(used) > 0 {
			continue
		}
		err = os.Mkdir(l.dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return id, fmt.Errorf("make lab directory: %w", err)
		}
		return id, nil
	}
	return id, errors.New("pick lab prefix: every one tried is in use; remove old labs")
}

// build makes everything the layout names.
func (l *Lab) build(lay layout) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	l.rec = record{
		Prefix: l.prefix, Detached: l.cfg.Detach, BPFFS: l.cfg.BPFFS,
		Owner: procRecord{PID: os.Getpid(), Start: start},
	}
	if err := l.save(); err != nil {
		return err
	}
	if l.cfg.Nodes > 0 {
		if l.rec.MountedBPFFS, err = EnsureBPFFS(l.cfg.BPFFS); err != nil {
			return err
		}
		if err := l.save(); err != nil {
			return err
		}
	}
	for _, name := range lay.segments {
		s, err := newSegment(name, l.prefix+"-"+name)
		if err != nil {
			return err
		}
		l.segments[name] = s
	}
	for _, spec := range lay.hosts {
		if err := l.addHost(spec); err != nil {
			return err
		}
	}
	return nil
}

// addHost makes one host and files it under its role.
func (l *Lab) addHost(spec hostSpec) error {
	h := &Host{lab: l, spec: spec, ns: l.prefix + "-" + spec.name}
	if err := h.build(); err != nil {
		return err
	}
	l.hosts[spec.name] = h
	switch spec.role {
	case roleNode:
		n, err := newNode(h)
		if err != nil {
			return err
		}
		n.witness = len(l.nodes) >= l.cfg.Nodes-l.cfg.Witnesses
		l.nodes = append(l.nodes, n)
	case roleClient:
		l.clients = append(l.clients, h)
	case roleEndpoint:
		l.eps = append(l.eps, h)
	case roleRouter:
		l.routers = append(l.routers, &Router{Host: h})
	}
	return nil
}

// build makes the host's namespace and cables and configures it.
func (h *Host) build() error {
	if err := createNS(h.ns, true); err != nil {
		return err
	}
	fd, err := netns.GetFromName(h.ns)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", h.ns, err)
	}
	defer fd.Close()
	for _, p := range h.spec.ports {
		if err := h.lab.segments[p.segment].plug(h.spec.name, fd, p); err != nil {
			return err
		}
	}
	return h.spec.configure(h.ns)
}

// Prefix is the lab's name, like pt1a2b; all it makes begins with it.
func (l *Lab) Prefix() string { return l.prefix }

// Dir is the lab's directory: one below it for each node, with its data, its
// run directory and its log.
func (l *Lab) Dir() string { return l.dir }

// Nodes are the load balancers in the order lb1, lb2, ….
func (l *Lab) Nodes() []*Node { return l.nodes }

// Node is the load balancer of that name, nil if there is none.
func (l *Lab) Node(name string) *Node {
	for _, n := range l.nodes {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

// Clients are the hosts on the clients' side.
func (l *Lab) Clients() []*Host { return l.clients }

// Endpoints are the hosts that services are balanced to.
func (l *Lab) Endpoints() []*Host { return l.eps }

// Routers are the hosts between clients and nodes in [Routed], in the order r1, r2.
func (l *Lab) Routers() []*Router { return l.routers }

// Host is the host of that name, of any kind; nil if there is none.
func (l *Lab) Host(name string) *Host { return l.hosts[name] }

// Release gives up the lab and leaves everything in place, for [Clean] to
// remove. It wants Config.Detach, without which the processes would die with
// this one.
func (l *Lab) Release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cfg.Detach {
		return fmt.Errorf("release lab %s: it was not built with Detach", l.prefix)
	}
	if l.closed {
		return ErrClosed
	}
	l.closed = true
	// Nobody owns it now: Clean may have it even while this process lives on.
	l.rec.Owner = procRecord{}
	err := l.save()
	l.cancel()
	l.closeHandles()
	return err
}

// Close removes everything the lab has made: processes first, then
// namespaces, pins and files. It may be called more than once and after a
// failed New; after Release it does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs := l.procs
	l.mu.Unlock()

	l.cancel() // from here on nothing is started
	ctx, cancel := context.WithTimeout(context.Background(), reapTimeout)
	defer cancel()
	errs := make([]error, len(procs))
	var killers errgroup.Group
	for i, p := range procs {
		killers.Go(func() error { errs[i] = p.Kill(ctx); return nil })
	}
	_ = killers.Wait() // the errors are in errs
	if errors.Join(errs...) == nil {
		errs = append(errs, l.group.Wait()) // nothing runs: it cannot hang
	}
	l.closeHandles()
	errs = append(errs, l.rec.removeTraces(l.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab %s: %w", l.prefix, err)
	}
	l.cfg.Logger.Info("lab removed", "prefix", l.prefix)
	return nil
}

// closeHandles gives back what this process holds open.
func (l *Lab) closeHandles() {
	for _, s := range l.segments {
		s.nl.Close()
	}
}
