package chaostest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
	"pontoon/internal/lab/impair"
)

// Code points and ports by which the daemons' traffic is told apart; see
// transport/DESIGN.md.
const (
	dscpRaft        = 48
	dscpReplication = 10
	portGossip      = 7401
	portBFD         = 3784
	portEcho        = 3785
)

// cables are all cables of the nodes, each with the harm that is done to it now.
type cables struct {
	ctx   context.Context
	group *errgroup.Group
	nodes []*lab.Node

	mu    sync.Mutex
	ports map[string][]*cable // by node
	harm  map[int][]harm
	next  int
}

// cable is one open port and what carries its late frames.
type cable struct {
	*impair.Port
	stop func()
}

// harm is a set of rules for one node's cables.
type harm struct {
	node  string
	rules func(leg int) impair.Rules
}

// openCables puts programs without rules on every cable of the nodes.
func openCables(ctx context.Context, g *errgroup.Group, nodes []*lab.Node) (*cables, error) {
	c := &cables{ctx: ctx, group: g, nodes: nodes, ports: map[string][]*cable{}, harm: map[int][]harm{}}
	for _, n := range nodes {
		if err := c.reopen(n); err != nil {
			return c, err
		}
	}
	return c, nil
}

// reopen takes up the cables of a node that has been plugged in anew.
func (c *cables) reopen(n *lab.Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeNode(n.Name())
	for _, iface := range n.Interfaces() {
		do, name, err := n.Cable(iface)
		if err != nil {
			return err
		}
		p, err := impair.Open(impair.Config{Do: do, Interface: name})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(c.ctx)
		done := make(chan struct{})
		c.group.Go(func() error {
			defer close(done)
			return p.Run(ctx)
		})
		c.ports[n.Name()] = append(c.ports[n.Name()], &cable{p, func() { cancel(); <-done }})
	}
	return c.apply(n.Name())
}

// closeNode lets go of a node's cables; c.mu is held.
func (c *cables) closeNode(name string) {
	for _, p := range c.ports[name] {
		p.stop()
		_ = p.Close() // of an interface that is gone
	}
	c.ports[name] = nil
}

// close lets go of all.
func (c *cables) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		c.closeNode(n.Name())
	}
}

// apply gives a node's cables all the rules there are for them; c.mu is held.
func (c *cables) apply(name string) error {
	var errs []error
	for leg, p := range c.ports[name] {
		var all impair.Rules
		for id := range c.next {
			for _, h := range c.harm[id] {
				if h.node == name {
					r := h.rules(leg)
					all.FromHost, all.ToHost = append(all.FromHost, r.FromHost...), append(all.ToHost, r.ToHost...)
				}
			}
		}
		// Without power there is no cable: reopen puts the rules on the next one.
		if err := p.Set(all); !errors.Is(err, unix.ENOLINK) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// hurt does harm until undo is called.
func (c *cables) hurt(hs ...harm) (undo func() error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := c.next
	c.next++
	c.harm[id] = hs
	change := func() error {
		var errs []error
		for _, h := range hs {
			errs = append(errs, c.apply(h.node))
		}
		return errors.Join(errs...)
	}
	if err := change(); err != nil {
		delete(c.harm, id)
		return nil, fmt.Errorf("hurt cables: %w", errors.Join(err, change()))
	}
	return func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.harm, id)
		return change()
	}, nil
}

// always uses the same rules on each leg.
func always(n *lab.Node, r impair.Rules) harm {
	return harm{n.Name(), func(int) impair.Rules { return r }}
}

// apart cuts two nodes off from each other, broadcasts included.
func apart(a, b *lab.Node) []harm {
	deafTo := func(n, to *lab.Node) harm {
		return harm{n.Name(), func(leg int) impair.Rules {
			return impair.Rules{ToHost: []impair.Rule{{Peer: to.MACs()[leg], Drop: 1}}}
		}}
	}
	return []harm{deafTo(a, b), deafTo(b, a)}
}

// badCables are the rules of the kinds that need no more than rules.
func badCables(f Fault) (impair.Rules, bool) {
	lose := impair.Rule{Drop: 1}
	switch f.Kind {
	case KindDeaf:
		return impair.Rules{ToHost: []impair.Rule{lose}}, true
	case KindMute:
		return impair.Rules{FromHost: []impair.Rule{lose}}, true
	case KindNoGossip:
		return impair.Both(impair.Rule{Port: portGossip, Drop: 1}), true
	case KindNoRaft:
		return impair.Both(impair.Rule{DSCP: []uint8{dscpRaft}, Protocol: unix.IPPROTO_TCP, Drop: 1}), true
	case KindNoRepl:
		return impair.Both(impair.Rule{DSCP: []uint8{dscpReplication}, Drop: 1}), true
	case KindNoEcho:
		return impair.Both(
			impair.Rule{Protocol: unix.IPPROTO_UDP, Port: portBFD, Drop: 1},
			impair.Rule{Protocol: unix.IPPROTO_UDP, Port: portEcho, Drop: 1}), true
	case KindLoss:
		return impair.Both(impair.Rule{Drop: f.Chance}), true
	case KindDouble:
		return impair.Both(impair.Rule{Duplicate: f.Chance}), true
	case KindLate:
		return impair.Both(impair.Rule{Delay: f.Late}), true
	case KindReorder:
		return impair.Both(impair.Rule{Jitter: f.Late}), true
	}
	return impair.Rules{}, false
}
