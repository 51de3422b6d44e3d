// Package router is a small BGP router for labs: what a demo puts between its clients and
// the load balancers on a machine where no router is installed.
//
// It listens to the product's own speaker and its own BFD, so it proves nothing about how
// the product gets on with other people's routers: the tests have BIRD and FRR for that. It
// announces nothing, takes everything its neighbours announce into the kernel's main table,
// and lets a neighbour go at once when BFD says it is gone. It runs in a process of its own,
// because BGP's sockets have to be opened in the router's network namespace.
package router

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/node/announce"
	"pontoon/node/detect"
)

// bgpPort is where it listens: neighbours connect to it, and it to nobody.
const bgpPort = 179

// maxRoutes bounds what the neighbours may put into the kernel.
const maxRoutes = 20000

// Run is the router until ctx ends; then its routes are taken out of the kernel. cfg has to be valid.
func Run(ctx context.Context, cfg lab.RouterConfig, logger *slog.Logger) error {
	changed := make(chan struct{}, 1)
	b := announce.NewBGP(announce.BGPOptions{Logger: logger, Notify: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	resets := make(chan netip.Addr, len(cfg.Peers)+1)
	bfd := detect.NewDriver(detect.Options{Logger: logger, Notify: func(k detect.Key, c detect.Change) {
		if !failed(c) {
			return
		}
		select {
		case resets <- k.Remote:
		default: // as many as there are peers wait already
		}
	}})
	fib, err := newFIB()
	if err != nil {
		return err
	}
	defer fib.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.Run(ctx) })
	g.Go(func() error { return bfd.Run(ctx) })
	g.Go(func() error {
		if _, err := b.Configure(ctx, bgpConfig(cfg)); err != nil {
			return fmt.Errorf("configure router: %w", err)
		}
		if err := b.Announce(ctx, nil); err != nil { // no session is opened before
			return fmt.Errorf("configure router: %w", err)
		}
		if err := bfd.SetSessions(sessions(cfg)); err != nil {
			return fmt.Errorf("configure router's BFD: %w", err)
		}
		return serve(ctx, b, fib, changed, resets, logger)
	})
	return g.Wait()
}

// failed says whether a change of a BFD session means that the neighbour is gone: it was up, and
// has not ended the session by decision.
func failed(c detect.Change) bool {
	return c.From == detect.Up && c.To == detect.Down && c.Diag == detect.DiagExpired
}

// serve carries what is learned to the kernel until ctx ends.
func serve(ctx context.Context, b *announce.BGP, fib *fib, changed <-chan struct{}, resets <-chan netip.Addr, logger *slog.Logger) error {
	// A route that the kernel refused is tried again, as everywhere.
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return fib.set(nil)
		case peer := <-resets:
			b.Reset(peer, "BFD: no packets")
			continue
		case <-changed:
		case <-again.C:
		}
		if err := fib.set(wanted(b.Learned())); err != nil {
			logger.Warn("routes", "err", err)
		}
	}
}

// wanted maps each prefix to its next hops.
func wanted(learned []announce.Learned) map[netip.Prefix][]netip.Addr {
	out := make(map[netip.Prefix][]netip.Addr, len(learned))
	for _, l := range learned {
		out[l.Prefix] = l.NextHops
	}
	return out
}

func bgpConfig(cfg lab.RouterConfig) announce.BGPConfig {
	c := announce.BGPConfig{
		AS: cfg.AS, RouterID: cfg.RouterID, Port: bgpPort, RestartTime: time.Minute, Multipath: true, MaxImport: maxRoutes,
		Import: announce.ImportAll(),
	}
	for _, p := range cfg.Peers {
		c.Peers = append(c.Peers, announce.BGPPeer{
			Address: p.Address, AS: p.AS, Port: bgpPort, Passive: true, Hold: 9 * time.Second, Keepalive: 3 * time.Second,
			IPv4: true, IPv6: true, GracefulRestart: true, MaxPrefixes: maxRoutes,
		})
	}
	return c
}

// sessions are the BFD sessions the configuration asks for.
func sessions(cfg lab.RouterConfig) []detect.Session {
	var out []detect.Session
	for _, p := range cfg.Peers {
		if p.BFDInterval == 0 {
			continue
		}
		out = append(out, detect.Session{
			Key:    detect.Key{Local: p.Local, Remote: p.Address, Interface: p.Interface},
			Config: detect.Config{DesiredMinTx: p.Interval(), RequiredMinRx: p.Interval(), DetectMult: uint8(p.BFDMultiplier)},
		})
	}
	return out
}
