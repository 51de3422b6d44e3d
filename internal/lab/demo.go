package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab/backend"
	"pontoon/internal/lab/traffic"
)

// The kinds of failure the demo can make. Each hurts the master.
const (
	FailKill  = "kill"  // power loss: links down and process killed at once, the kernel forgotten
	FailLink  = "link"  // all links down, the machine lives
	FailPause = "pause" // the daemon is stopped, the kernel goes on
)

// Failures lists the kinds of failure, in the order they are made by default.
func Failures() []string { return []string{FailKill, FailLink, FailPause} }

// What the demo builds: the service and where it goes.
const (
	demoPort      = 80
	demoEndpoints = 2
	endpointPort  = 8080
)

// DemoConfig says what the demo shall do.
type DemoConfig struct {
	// Binary is the product's executable, as a rule this very one.
	Binary string
	// Nodes is 3 when 0; 3 to MaxNodes. Two voters alone are not highly
	// available, so fewer would not show what the product does.
	Nodes int
	// Connections is 1000 when 0.
	Connections int
	// Failures are made in this order; all kinds when nil, none when empty.
	Failures []string
	// BGP puts a router between clients and nodes, which learns the service's address by
	// BGP, and does all failures twice: with a master, and with all nodes active.
	BGP bool
	// Keep leaves everything running at the end and prints how to look
	// around and how to clean up.
	Keep bool
	// JSON makes Out hold one JSON object and nothing else; what happens is
	// told on Err.
	JSON bool
	// Out and Err are stdout and stderr; io.Discard when nil. When something
	// went wrong the state of the lab is dumped to Err.
	Out, Err io.Writer
	// Color allows escape sequences in what is told to people.
	Color bool
	// Dir is where the lab's directory is made; os.TempDir() when empty.
	Dir string
	// Logger gets the lab's own lines; slog.DiscardHandler when nil.
	Logger *slog.Logger
}

func (c DemoConfig) withDefaults() DemoConfig {
	if c.Nodes == 0 {
		c.Nodes = 3
	}
	if c.Connections == 0 {
		c.Connections = 1000
	}
	if c.Failures == nil {
		c.Failures = Failures()
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Err == nil {
		c.Err = io.Discard
	}
	return c
}

// Validate reports everything that is wrong with the configuration at once.
func (c DemoConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	if err := checkExecutable(c.Binary); err != nil {
		errs = append(errs, err)
	}
	if c.Nodes < 3 || c.Nodes > MaxNodes {
		errs = append(errs, fmt.Errorf("%d nodes: want 3 to %d", c.Nodes, MaxNodes))
	}
	const maxConnections = 20000 // one client address has no more ports to spare
	if c.Connections < 1 || c.Connections > maxConnections {
		errs = append(errs, fmt.Errorf("%d connections: want 1 to %d", c.Connections, maxConnections))
	}
	for _, f := range c.Failures {
		if !slices.Contains(Failures(), f) {
			errs = append(errs, fmt.Errorf("failure %q: want one of %s", f, strings.Join(Failures(), ", ")))
		}
	}
	return errors.Join(errs...)
}

// ErrVerdict is wrapped by RunDemo's error when the demo ran to its end and
// the product did not hold its promise; the report says how.
var ErrVerdict = errors.New("the demo's verdict is bad")

// RunDemo builds a two-leg network, or one with a router when BGP is asked for, starts a cluster of real daemons in it,
// balances long-lived connections through it and hurts the master in every
// way that is asked for, each time waiting for the cluster to be whole again. After the first of
// these failures an endpoint's server dies, too, and comes back.
// It tells what happens while it goes and sums it up at the end.
//
// The error wraps ErrVerdict when a connection was lost or corrupted, new
// ones were not served, nobody took over, the victim did not come back, or new ones were
// sent to an endpoint that was known to be dead;
// another error means that the demo could not be carried out. Everything is
// removed before it returns, also when ctx ends, unless Keep is set and the
// cluster stands.
func RunDemo(ctx context.Context, cfg DemoConfig) (Report, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	if err := Preflight(cfg.Connections); err != nil {
		return Report{}, fmt.Errorf("this machine cannot run the demo:\n%w", err)
	}
	tell := newNarrator(cfg)
	if old, err := Leftovers(cfg.Dir); err == nil && len(old) > 0 {
		tell.step("still there from earlier: %s; `pontoon demo --clean PREFIX` removes one", strings.Join(old, ", "))
	}
	topology, router := TwoLeg, ""
	if cfg.BGP {
		topology, router = Routed, "a router, "
	}
	tell.step("building %d load balancers, %s%d client and %d endpoints in network namespaces", cfg.Nodes, router, 1, demoEndpoints)
	l, err := New(Config{
		Binary: cfg.Binary, Topology: topology, Nodes: cfg.Nodes, Clients: 1, Endpoints: demoEndpoints,
		Dir: cfg.Dir, Detach: cfg.Keep, Logger: cfg.Logger,
	})
	if err != nil {
		return Report{}, err
	}
	d := &demo{cfg: cfg, lab: l, tell: tell, report: newReport(cfg)}
	err = d.run(ctx)
	if err != nil && ctx.Err() == nil {
		l.Dump(cfg.Err)
	}
	return d.finish(ctx, err)
}

// demo is one run.
type demo struct {
	cfg     DemoConfig
	lab     *Lab
	tell    *narrator
	form    demoForm          // the one that is being shown
	routes  *RouteTable       // of the router, nil without one
	peers   int               // how many BGP neighbours each node is to have
	servers []*backend.Server // the endpoints', in their order
	clients *traffic.Clients
	prober  *traffic.Prober
	report  Report
	stands  bool // the cluster was complete: Keep has something to keep
}

// run carries the demo out.
func (d *demo) run(ctx context.Context) error {
	if err := d.raiseCluster(ctx); err != nil {
		return err
	}
	if err := d.startRouter(ctx); err != nil {
		return err
	}
	if d.routes != nil {
		defer d.routes.Close()
	}
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	err := d.startEndpoints(ctx, g.Go)
	for _, form := range formsOf(d.cfg) {
		if err == nil {
			d.form = form
			err = d.show(ctx)
		}
	}
	cancel()
	return errors.Join(err, g.Wait())
}

// show does everything for one form.
func (d *demo) show(ctx context.Context) error {
	if err := d.createService(ctx, d.lab.Nodes()[0]); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	err := d.startTraffic(ctx, &g)
	if err == nil {
		d.stands = true
		err = d.rounds(ctx)
	}
	cancel()
	return errors.Join(err, g.Wait())
}

// startTraffic starts the prober, waits until the service is served, opens the
// connections and measures the calm.
func (d *demo) startTraffic(ctx context.Context, g *errgroup.Group) error {
	client := d.lab.Clients()[0]
	var err error
	if d.prober, err = traffic.NewProber(traffic.ProberConfig{Dial: client.Dial, Target: d.form.target()}); err != nil {
		return err
	}
	g.Go(func() error { return d.prober.Run(ctx) })
	if err := within(ctx, serveTimeout, func(ctx context.Context) error { return d.prober.Succeeding(ctx, steadyProbes) }); err != nil {
		return fmt.Errorf("the service does not answer: %w", err)
	}
	d.tell.step("the service answers on %s; opening %d connections", d.form.target(), d.cfg.Connections)
	d.clients, err = traffic.NewClients(traffic.ClientsConfig{
		Dial: client.Dial, Target: d.form.target(), Count: d.cfg.Connections, Progress: d.tell.quarters(d.cfg.Connections),
	})
	if err != nil {
		return err
	}
	if err := d.clients.Open(ctx); err != nil {
		return err
	}
	g.Go(func() error { return d.clients.Run(ctx) })
	return d.measureCalm(ctx)
}

// calmTime is how long the connections are watched before the first failure.
const calmTime = 2 * time.Second

// measureCalm finds the gap that is there without any failure.
func (d *demo) measureCalm(ctx context.Context) error {
	w := d.clients.Window()
	if err := within(ctx, progressTimeout, w.Wait); err != nil {
		return err
	}
	w = d.clients.Window()
	_ = within(ctx, calmTime, func(ctx context.Context) error { <-ctx.Done(); return nil })
	if err := ctx.Err(); err != nil {
		return err
	}
	r := w.Result()
	d.report.CalmGapMS = max(d.report.CalmGapMS, ms(r.Blackout))
	d.tell.detail("in calm the worst gap between two answers is %s; a frame goes out every 100 ms", short(r.Blackout))
	if lost := r.Reset + r.Corrupted; lost > 0 {
		return fmt.Errorf("%d of %d connections were lost before any failure was made: %s", lost, r.Connections, strings.Join(r.Errors, "; "))
	}
	return nil
}

// finish prints the outcome and removes the lab, or keeps it.
func (d *demo) finish(ctx context.Context, err error) (Report, error) {
	if err == nil {
		d.report.conclude()
		if perr := d.report.print(d.cfg); perr != nil {
			err = perr
		} else if !d.report.OK {
			err = fmt.Errorf("%w: %s", ErrVerdict, d.report.Verdict)
			d.lab.Dump(d.cfg.Err)
		}
	}
	if d.cfg.Keep && d.stands && ctx.Err() == nil {
		return d.report, errors.Join(err, d.keep())
	}
	d.tell.step("removing everything")
	return d.report, errors.Join(err, d.lab.Close())
}

// within runs fn with a deadline.
func within(ctx context.Context, d time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return fn(ctx)
}
