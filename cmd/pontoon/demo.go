package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/internal/lab"
	"pontoon/internal/lab/router"
	"pontoon/internal/logging"
)

// demoFlags are the settings of `demo`.
type demoFlags struct {
	nodes       int
	connections int
	failures    []string
	keep        bool
	clean       string
	endpoint    string
	router      string
	bgp         bool
}

func newDemoCmd(a *app) *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show on this machine that connections outlive their load balancer",
		Long: `Show on this machine, as root, that connections outlive their load balancer: a
cluster of real daemons in network namespaces balances long-lived connections
that carry numbered, checksummed data both ways; then the master is hurt in each
way of --failures:

  kill   its links and its processes die at once, as in a power loss
  link   its links go down
  pause  its daemon is stopped (SIGSTOP) while its kernel goes on

After the first of these the server of one endpoint dies and is started again: new
connections go to the others as soon as that is found, and theirs are not touched.

With --bgp a router stands between clients and nodes and learns the service's
address by BGP, with BFD beside it. Everything is then done twice: with one master
and the others ranked behind it, and with all nodes active at once (ECMP).

It tells what happens while it goes and ends with a verdict. The exit status is 1
if a connection was lost or corrupted, or new ones went on to a dead endpoint. It cleans up after itself, also when
interrupted.`,
		Example: `  pontoon demo
  pontoon demo --connections 200 --failures kill --keep`,
		Args: wantArgs(),
	}
	fs := cmd.Flags()
	fs.IntVar(&f.nodes, "nodes", 3, fmt.Sprintf("how many load balancers, 3 to %d", fsm.MaxSlots))
	fs.IntVar(&f.connections, "connections", 1000, "how many long-lived connections")
	fs.StringSliceVar(&f.failures, "failures", lab.Failures(), "what to do to the master, in this order, with commas between")
	fs.BoolVar(&f.keep, "keep", false, "leave it running at the end, and say how to look around and clean up")
	fs.BoolVar(&f.bgp, "bgp", false, "reach the service through a BGP router: with one master, and with all nodes active")
	// What --keep leaves behind as its endpoints are processes of this program.
	fs.StringVar(&f.endpoint, "endpoint", "", "serve as `name=address:port`, an endpoint of a kept demo, and do nothing else")
	_ = fs.MarkHidden("endpoint") // fails only for a flag that is not defined
	// BGP's sockets have to be opened in the router's namespace: it is a process of its own.
	fs.StringVar(&f.router, "router", "", "be the router that `file` describes, and do nothing else")
	_ = fs.MarkHidden("router")
	fs.StringVar(&f.clean, "clean", "", "remove what a demo with this `prefix` left, and do nothing else")
	format := newChoice(formatTable, formatTable, formatJSON).
		addTo(cmd, "output", "o", "how to print the verdict; with json, what happens goes to standard error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case f.endpoint != "":
			return lab.ServeEndpoint(cmd.Context(), f.endpoint)
		case f.router != "":
			return a.demoRouter(cmd.Context(), f.router)
		case f.clean != "":
			return a.cleanDemo(f.clean)
		}
		return a.demo(cmd.Context(), f, format.value == formatJSON)
	}
	return withoutDaemon(cmd)
}

func (a *app) demo(ctx context.Context, f demoFlags, asJSON bool) error {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	cfg := lab.DemoConfig{
		Binary:      binary,
		Nodes:       f.nodes,
		Connections: f.connections,
		Failures:    append([]string{}, f.failures...), // nil would mean all of them
		Keep:        f.keep,
		BGP:         f.bgp,
		JSON:        asJSON,
		Out:         a.out,
		Err:         a.err,
		Color:       a.color(),
	}
	if f.nodes > fsm.MaxSlots {
		return usagef("--nodes %d: want 3 to %d", f.nodes, fsm.MaxSlots)
	}
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	if !signal.Ignored(syscall.SIGHUP) {
		// A closed terminal shall not leave namespaces behind either.
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stop()
	}
	_, err = lab.RunDemo(ctx, cfg)
	return err
}

// demoRouter is the router of a demo with BGP, until it is ended.
func (a *app) demoRouter(ctx context.Context, file string) error {
	cfg, err := lab.ReadRouterConfig(file)
	if err != nil {
		return err
	}
	logger, err := logging.New(a.err, logging.Config{})
	if err != nil {
		return err
	}
	return router.Run(ctx, cfg, logger)
}

func (a *app) cleanDemo(prefix string) error {
	if err := lab.Clean("", prefix); err != nil {
		return err
	}
	a.printf("demo %s is removed\n", prefix)
	return nil
}
