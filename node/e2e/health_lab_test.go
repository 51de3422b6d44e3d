package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/backend"
)

// serveBackend runs a server with switchable behaviour on a host until the test ends, and
// returns when it serves.
func serveBackend(t testing.TB, h *lab.Host, cfg backend.Config, at netip.AddrPort) *backend.Server {
	t.Helper()
	cfg.Name, cfg.Place, cfg.At = h.Name(), h, at
	s, err := backend.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	background(t, fmt.Sprintf("%s %s on %s", cfg.Kind, at, h.Name()), s.Run)
	behave(t, s, backend.Behaviour{})
	return s
}

// behave changes what a server does, and returns when it does it.
func behave(t testing.TB, s *backend.Server, b backend.Behaviour) {
	t.Helper()
	if err := s.Set(within(t, 10*time.Second), b); err != nil {
		t.Fatal(err)
	}
}

// endpointSeen is what `endpoint list -o json` says of one endpoint.
type endpointSeen struct {
	Service  string         `json:"service"`
	Address  netip.AddrPort `json:"address"`
	Health   string         `json:"health"`
	Since    time.Time      `json:"health_since"`
	Error    string         `json:"health_error"`
	Flapping bool           `json:"flapping"`
	P50      float64        `json:"latency_p50_ms"`
	P99      float64        `json:"latency_p99_ms"`
	Share    int            `json:"share"`
	WhyOut   string         `json:"why_out"`
}

func (e endpointSeen) String() string {
	return fmt.Sprintf("%s of %s is %q since %s, error %q, out because of %q", e.Address, e.Service, e.Health, e.Since.Format(time.TimeOnly), e.Error, e.WhyOut)
}

// endpointsSeen asks once, by the command line.
func endpointsSeen(ctx context.Context, n *lab.Node) (list []endpointSeen, err error) {
	out, err := n.CLI(ctx, "endpoint", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	return list, json.Unmarshal([]byte(out), &list)
}

// endpointsWatch knows the newest list of endpoints, so that many tests can wait for theirs with one
// command line running.
type endpointsWatch struct {
	mu   sync.Mutex
	list []endpointSeen
	err  error
}

// watchEndpoints asks again and again until the test ends.
func watchEndpoints(t testing.TB, n *lab.Node) *endpointsWatch {
	t.Helper()
	w := &endpointsWatch{err: errors.New("nothing heard yet")}
	background(t, "watch of endpoints", func(ctx context.Context) error {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			list, err := endpointsSeen(ctx, n)
			if ctx.Err() != nil {
				return nil
			}
			w.mu.Lock()
			w.list, w.err = list, err
			w.mu.Unlock()
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return w
}

// endpoint is the newest that was heard of one.
func (w *endpointsWatch) endpoint(service string, at netip.AddrPort) (endpointSeen, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return endpointSeen{}, w.err
	}
	for _, e := range w.list {
		if e.Service == service && e.Address == at {
			return e, nil
		}
	}
	return endpointSeen{}, fmt.Errorf("no endpoint %s of %s is listed", at, service)
}

// await waits until an endpoint is as cond wants it, and returns it.
func (w *endpointsWatch) await(t testing.TB, what, service string, at netip.AddrPort, cond func(endpointSeen) error) (e endpointSeen) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("%s of %s to be %s", at, service, what), func(context.Context) (err error) {
		if e, err = w.endpoint(service, at); err != nil {
			return err
		}
		if err := cond(e); err != nil {
			return fmt.Errorf("%w: %s", err, e)
		}
		return nil
	})
	return e
}

// health waits until an endpoint is up, down or unknown.
func (w *endpointsWatch) health(t testing.TB, service string, at netip.AddrPort, want string) endpointSeen {
	t.Helper()
	return w.await(t, want, service, at, func(e endpointSeen) error {
		if e.Health != want {
			return errors.New("it is not")
		}
		return nil
	})
}
