package transport

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// watch pings every living member once per probe interval, so that Members can
// show who does not answer this node, well before gossip as a whole declares
// anybody dead. With the handful of members Pontoon has, that is some tens of
// small datagrams a second.
func (g *Gossip) watch(ctx context.Context, eg *errgroup.Group) {
	tick := time.NewTicker(g.cfg.ProbeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, m := range g.table.startPings() {
			eg.Go(func() error {
				_, err := g.list.Ping(m.Node, net.UDPAddrFromAddrPort(m.Address))
				g.table.endPing(m.Node, err == nil)
				return nil
			})
		}
	}
}

// rejoin exchanges member lists with two kinds of node. Seeds that are not alive:
// the library stops contacting the dead after a while, and nobody contacts a node
// that started alone. And members that just came to life: a node that restarts is
// told of its own death by the others' gossip and refutes it, by which they know
// it again, but it does not know them.
func (g *Gossip) rejoin(ctx context.Context, eg *errgroup.Group) {
	tick := time.NewTicker(g.cfg.RejoinInterval)
	defer tick.Stop()
	busy := map[string]bool{}       // touched by this goroutine only
	done := make(chan string, 1)    // names whose attempt ended
	finished := func(node string) { // an attempt outlives neither Run nor the loop
		select {
		case done <- node:
		case <-ctx.Done():
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case node := <-done:
			delete(busy, node)
			continue
		case <-tick.C:
		}
		for node, addr := range g.toJoin() {
			if busy[node] {
				continue
			}
			busy[node] = true
			eg.Go(func() error {
				defer finished(node)
				if err := g.Join([]netip.AddrPort{addr}); err != nil {
					g.cfg.Logger.Debug("gossip seed does not answer", "node", node, "err", err)
				}
				return nil
			})
		}
	}
}

// toJoin returns the nodes to exchange lists with now; none once this node left.
func (g *Gossip) toJoin() map[string]netip.AddrPort {
	if !g.table.alive(g.cfg.Node) {
		return nil
	}
	nodes := g.table.takeFresh()
	g.mu.Lock()
	defer g.mu.Unlock()
	for node, addr := range g.seeds {
		if !g.table.alive(node) {
			nodes[node] = addr
		}
	}
	return nodes
}

// slogWriter turns the library's log lines into debug records.
type slogWriter struct{ logger *slog.Logger }

// Write logs one line.
func (w *slogWriter) Write(p []byte) (int, error) {
	if w.logger.Enabled(context.Background(), slog.LevelDebug) {
		line := strings.TrimSpace(string(p))
		if _, rest, ok := strings.Cut(line, "memberlist: "); ok {
			line = rest
		}
		w.logger.Debug(line, "source", "memberlist")
	}
	return len(p), nil
}
