package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"pontoon/internal/lab/traffic"
)

// How long the demo waits for each thing before it says that it did not come.
const (
	upTimeout       = 30 * time.Second // a daemon to answer
	wholeTimeout    = 60 * time.Second // all nodes to vote, be ready and in sync
	serveTimeout    = 30 * time.Second // the new service to be served
	progressTimeout = 30 * time.Second // all connections to go on
)

// steadyProbes is how many fresh connections in a row must succeed for the
// service to count as served.
const steadyProbes = 5

func endpointAddr(ep *Host) netip.AddrPort { return netip.AddrPortFrom(ep.Addr(), endpointPort) }

// raiseCluster starts the daemons and makes them one cluster.
func (d *demo) raiseCluster(ctx context.Context) error {
	nodes := d.lab.Nodes()
	d.tell.step("starting %d daemons in lab %s", len(nodes), d.lab.Prefix())
	for _, n := range nodes {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := within(ctx, upTimeout, n.WaitUp); err != nil {
			return err
		}
	}
	if _, err := nodes[0].CLI(ctx, "init"); err != nil {
		return err
	}
	d.tell.detail("%s has begun a cluster", nodes[0].Name())
	for _, n := range nodes[1:] {
		if err := d.join(ctx, nodes[0], n); err != nil {
			return err
		}
	}
	if err := d.awaitWhole(ctx); err != nil {
		return err
	}
	d.tell.detail("all %d nodes vote, are ready and in sync", len(nodes))
	return nil
}

// join makes n a member by a token of first.
func (d *demo) join(ctx context.Context, first, n *Node) error {
	token, err := first.CLI(ctx, "token", "create")
	if err != nil {
		return err
	}
	if _, err := n.CLI(ctx, "join", first.ClusterAddress().String(), "--token", strings.TrimSpace(token)); err != nil {
		return err
	}
	d.tell.detail("%s has joined", n.Name())
	return nil
}

// awaitWhole waits until every node, asked itself, says that all nodes vote,
// live, are ready and in sync.
func (d *demo) awaitWhole(ctx context.Context) error {
	var names []string
	for _, n := range d.lab.Nodes() {
		names = append(names, n.Name())
	}
	return within(ctx, wholeTimeout, func(ctx context.Context) error {
		return WaitFor(ctx, "the whole cluster", func(ctx context.Context) error {
			for _, n := range d.lab.Nodes() {
				s, err := n.Status(ctx)
				if err != nil {
					return err
				}
				if err := s.CheckHealthy(names...); err != nil {
					return fmt.Errorf("seen from %s: %w", n.Name(), err)
				}
				if err := s.CheckBGP(d.peers); err != nil {
					return fmt.Errorf("%s: %w", n.Name(), err)
				}
			}
			return nil
		})
	})
}

// awaitMaster waits until the nodes that are asked name one and the same
// master, other than not, and returns it with its epoch.
func (d *demo) awaitMaster(ctx context.Context, not string, asked []*Node) (master string, epoch uint64, err error) {
	err = WaitFor(ctx, "a master", func(ctx context.Context) error {
		master = ""
		for _, n := range asked {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			m := s.Master(demoInstance)
			switch {
			case m == "" || m == not:
				return fmt.Errorf("%s still names %q", n.Name(), m)
			case master != "" && m != master:
				return fmt.Errorf("%s names %s and another node %s", n.Name(), m, master)
			}
			master = m
			for _, i := range s.Instances {
				if i.Name == demoInstance {
					epoch = i.Epoch
				}
			}
		}
		return nil
	})
	return master, epoch, err
}

// demoInstance owns the service: the one that always exists.
const demoInstance = "default"

// keep hands the endpoints over to processes of their own, lets go of the lab
// and says what can be done with it.
func (d *demo) keep() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*statusTimeout)
	defer cancel()
	name, _, err := d.awaitMaster(ctx, "", d.lab.Nodes())
	if err != nil {
		name = d.lab.Nodes()[0].Name() // a failed demo may be kept to see why
	}
	master := d.lab.Node(name)
	for _, ep := range d.lab.Endpoints() {
		cmd := exec.Command(d.cfg.Binary, EndpointArgs(ep.Name(), endpointAddr(ep))...)
		if _, err := ep.Start(cmd); err != nil {
			return err
		}
	}
	if err := d.lab.Release(); err != nil {
		return err
	}
	client := d.lab.Clients()[0].Namespace()
	d.tell.plain(fmt.Sprintf(`
The cluster is left running. Look around:
  %[1]s --socket %[2]s status --watch
  nsenter --net=%[3]s curl http://%[4]s/
  nsenter --net=%[5]s ip address
  less %[6]s
Hurt the master, %[8]s, yourself, and bring it back:
  nsenter --net=%[5]s ip link set eth1 down
  nsenter --net=%[5]s ip link set eth1 up
Remove it:
  %[1]s demo --clean %[7]s
`, d.cfg.Binary, master.Socket(), nsPath(client), d.form.target().Addr(), nsPath(master.Namespace()), master.LogFile(), d.lab.Prefix(), name))
	return nil
}

// EndpointArgs are the arguments that make the product's binary serve as an
// endpoint of a kept demo; the command behind them calls ServeEndpoint.
func EndpointArgs(name string, at netip.AddrPort) []string {
	return []string{"demo", "--endpoint", name + "=" + at.String()}
}

// ServeEndpoint is an endpoint of a kept demo: it serves what is in
// EndpointArgs behind the flag, NAME=ADDRESS:PORT, until ctx ends.
func ServeEndpoint(ctx context.Context, spec string) error {
	name, at, ok := strings.Cut(spec, "=")
	addr, err := netip.ParseAddrPort(at)
	if !ok || err != nil {
		return fmt.Errorf("endpoint %q: want NAME=ADDRESS:PORT", spec)
	}
	srv, err := traffic.NewServer(traffic.ServerConfig{Name: name})
	if err != nil {
		return err
	}
	ln, err := net.ListenTCP(network("tcp", addr), net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return fmt.Errorf("serve as endpoint: %w", err)
	}
	return srv.Serve(ctx, ln)
}
