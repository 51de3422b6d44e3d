package routertest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/lab/router"
	"pontoon/node/announce"
)

// The test binary is also what runs on the hosts: BGP's sockets have to be opened in their namespaces.
const (
	asSpeaker = "PONTOON_TEST_SPEAKER" // a speech as JSON
	asRouter  = "PONTOON_TEST_ROUTER"  // a file for lab.ReadRouterConfig
)

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch speech, config := os.Getenv(asSpeaker), os.Getenv(asRouter); {
	case speech != "":
		err = speak(ctx, speech, logger)
	case config != "":
		err = route(ctx, config, logger)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// speech is what a node announces to one router.
type speech struct {
	Config announce.BGPConfig
	Routes []announce.Route
}

func speak(ctx context.Context, text string, logger *slog.Logger) error {
	var s speech
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	b := announce.NewBGP(announce.BGPOptions{Logger: logger})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.Run(ctx) })
	g.Go(func() error {
		if _, err := b.Configure(ctx, s.Config); err != nil {
			return err
		}
		return b.Announce(ctx, s.Routes)
	})
	return g.Wait()
}

func route(ctx context.Context, config string, logger *slog.Logger) error {
	cfg, err := lab.ReadRouterConfig(config)
	if err != nil {
		return err
	}
	return router.Run(ctx, cfg, logger)
}

// speechOf is what node i of a lab says to a router: a VIP of each family.
func speechOf(r *lab.Router, i int, med uint32, hops ...netip.Addr) speech {
	s := speech{Config: announce.BGPConfig{
		AS: lab.NodeAS, RouterID: netip.AddrFrom4([4]byte{192, 168, 90, byte(11 + i)}), Port: 179, RestartTime: time.Minute,
		Peers: []announce.BGPPeer{{
			Address: r.CoreAddr(lab.IPv4), AS: lab.RouterAS, Port: 179, Hold: 9 * time.Second, Keepalive: 3 * time.Second,
			IPv4: true, IPv6: true, GracefulRestart: true, MaxPrefixes: 1000,
		}},
	}}
	for n, f := range lab.Families() {
		route := announce.Route{Prefix: single(f.RoutedVIP(0)), MED: med, Communities: []uint32{65000<<16 | 100}}
		if len(hops) > 0 {
			route.NextHop = hops[n]
		}
		s.Routes = append(s.Routes, route)
	}
	return s
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
