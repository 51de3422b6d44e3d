package chaostest

import (
	"context"
	"fmt"
	"os"
	"strings"

	"pontoon/internal/lab"
)

// modes are those of the services, from port 80 on.
var modes = []string{"fullnat", "dnat"}

// raise starts the daemons and makes a cluster of them with two services.
func (r *run) raise(ctx context.Context) error {
	nodes := r.lab.Nodes()
	for _, n := range nodes {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.WaitUp(ctx); err != nil {
			return err
		}
	}
	if _, err := nodes[0].CLI(ctx, "init"); err != nil {
		return err
	}
	for _, n := range nodes[1:] {
		token, err := nodes[0].CLI(ctx, "token", "create")
		if err != nil {
			return err
		}
		if _, err := n.CLI(ctx, "join", nodes[0].ClusterAddress().String(), "--token", strings.TrimSpace(token)); err != nil {
			return err
		}
	}
	err := lab.WaitFor(ctx, "all nodes to be healthy", func(ctx context.Context) error {
		for _, n := range nodes {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if err := s.CheckHealthy(r.h.Nodes...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.declare(ctx, nodes[0])
}

// declare makes the VIPs and services, and waits until all drivers know them.
func (r *run) declare(ctx context.Context, n *lab.Node) error {
	orders := [][]string{
		{"vip", "create", lab.ServiceVIP().String()},
		{"vip", "create", lab.ServiceVIP6().String()},
		{"vip", "create", heldVIP().String(), "--on-quorum-loss", "hold"},
		{"vip", "create", lab.GatewayVIP().String(), "--kind", "gateway"},
	}
	for i, mode := range modes {
		orders = append(orders, []string{
			"service", "create", mode, "--vip", lab.ServiceVIP().String(), "--port", fmt.Sprint(80 + i), "--mode", mode,
			"--endpoint", endpoint(r.lab.Endpoints()[0]).String(), "--endpoint", endpoint(r.lab.Endpoints()[1]).String(),
		})
	}
	for _, args := range orders {
		if _, err := n.CLI(ctx, args...); err != nil {
			return err
		}
	}
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	return lab.WaitFor(ctx, "all nodes to carry the configuration out", func(ctx context.Context) error {
		for _, n := range r.lab.Nodes() {
			now, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if me, _ := now.Node(n.Name()); me.Applied < s.Cluster.Applied {
				return fmt.Errorf("%s is at %d of %d", n.Name(), me.Applied, s.Cluster.Applied)
			}
		}
		return nil
	})
}

func copyFile(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("keep log: %w", err)
	}
	if err := os.WriteFile(to, raw, 0o600); err != nil {
		return fmt.Errorf("keep log: %w", err)
	}
	return nil
}
