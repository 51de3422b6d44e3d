package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"

	"pontoon/fsm"
	"pontoon/transport"
)

// gossiper runs gossip from the moment the replicated state holds the key: a
// joiner learns it through Raft like everything else.
type gossiper struct {
	node   string
	bind   netip.AddrPort
	store  *store
	logger *slog.Logger
	wake   func() // somebody's state changed

	mu sync.Mutex
	g  *transport.Gossip
}

// members is what gossip sees now; nothing before it runs.
func (g *gossiper) members() []transport.GossipMember {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.g == nil {
		return nil
	}
	return g.g.Members()
}

func (g *gossiper) run(ctx context.Context) error {
	keys, err := g.waitKeys(ctx)
	if err != nil {
		return nil // stopped before there was anything to do
	}
	gs, err := transport.NewGossip(transport.GossipConfig{Node: g.node, Bind: g.bind, Keys: keys, Logger: g.logger})
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
			g.wake()
		}
	}
}

func (g *gossiper) seeds(s *fsm.State) map[string]netip.AddrPort {
	out := map[string]netip.AddrPort{}
	for _, n := range s.Nodes() {
		ap, err := netip.ParseAddrPort(n.Address)
		if err != nil || string(n.Name) == g.node {
			continue
		}
		out[string(n.Name)] = netip.AddrPortFrom(ap.Addr(), n.GossipPort)
	}
	return out
}
