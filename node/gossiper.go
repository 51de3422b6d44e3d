package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

// gossiper runs gossip from the moment the replicated state holds the key: a
// joiner learns it through Raft like everything else.
type gossiper struct {
	self   machine
	bind   netip.AddrPort
	store  *store
	logger *slog.Logger
	wake   func() // somebody's state changed

	mu     sync.Mutex
	g      *transport.Gossip
	silent map[string]time.Time // who gossip calls dead or left, and since when it does
}

// gossipName is what a machine is called in gossip. Part of its key belongs to
// it: a removed machine that does not know of it gossips on, and would be taken
// for the one that has its name now, or hide it.
func gossipName(m machine) string { return fmt.Sprintf("%s.%x", m.name, m.key[:8]) }

// members is what gossip sees now of the cluster's members, by their names;
// nothing before it runs.
func (g *gossiper) members() []transport.GossipMember {
	g.mu.Lock()
	gs := g.g
	g.mu.Unlock()
	if gs == nil {
		return nil
	}
	return membersOnly(g.store.State(), gs.Members())
}

// membersOnly leaves out who is no member, and calls the others by their names.
func membersOnly(s *fsm.State, seen []transport.GossipMember) []transport.GossipMember {
	names := map[string]string{}
	for p := range machines(s) {
		names[gossipName(p)] = p.name
	}
	var out []transport.GossipMember
	for _, m := range seen {
		if name, ok := names[m.Node]; ok {
			m.Node = name
			out = append(out, m)
		}
	}
	return out
}

// silentSince tells since when gossip has given up each node it has given up.
// Every node keeps this, whoever leads.
func (g *gossiper) silentSince() map[string]time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.silent)
}

func (g *gossiper) noteSilence(members []transport.GossipMember, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := map[string]time.Time{}
	for _, m := range members {
		if m.State != transport.GossipDead && m.State != transport.GossipLeft {
			continue
		}
		next[m.Node] = now
		if since, ok := g.silent[m.Node]; ok {
			next[m.Node] = since
		}
	}
	g.silent = next
}

func (g *gossiper) run(ctx context.Context) error {
	keys, err := g.waitKeys(ctx)
	if err != nil {
		return nil // stopped before there was anything to do
	}
	gs, err := transport.NewGossip(transport.GossipConfig{Node: gossipName(g.self), Bind: g.bind, Keys: keys, Logger: g.logger})
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.g = gs
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	follow := &sync.WaitGroup{}
	follow.Go(func() { done <- g.follow(ctx, gs, keys) })
	err = gs.Run(ctx)
	cancel()
	follow.Wait()
	return errors.Join(err, <-done)
}

func (g *gossiper) waitKeys(ctx context.Context) ([][]byte, error) {
	for {
		changed := g.store.Changed()
		if keys := g.store.State().Cluster().GossipKey; len(keys) > 0 {
			return keys, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

// follow hands the state's members and keys to gossip and passes its signals on.
func (g *gossiper) follow(ctx context.Context, gs *transport.Gossip, keys [][]byte) error {
	var seeds map[string]netip.AddrPort
	for {
		changed := g.store.Changed()
		s := g.store.State()
		if want := g.seeds(s); !reflect.DeepEqual(want, seeds) {
			for name := range seeds {
				if _, ok := want[name]; !ok {
					gs.Forget(name)
				}
			}
			gs.SetSeeds(want)
			seeds = want
		}
		if want := s.Cluster().GossipKey; len(want) > 0 && !reflect.DeepEqual(want, keys) {
			if err := gs.SetKeys(want); err != nil {
				return fmt.Errorf("change gossip keys: %w", err)
			}
			keys = want
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-gs.Changed():
			g.noteSilence(g.members(), time.Now())
			g.wake()
		}
	}
}

func (g *gossiper) seeds(s *fsm.State) map[string]netip.AddrPort {
	out := map[string]netip.AddrPort{}
	for _, n := range s.Nodes() {
		ap, err := netip.ParseAddrPort(n.Address)
		if err != nil || machineOf(n) == g.self {
			continue
		}
		out[gossipName(machineOf(n))] = netip.AddrPortFrom(ap.Addr(), n.GossipPort)
	}
	return out
}
