package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pontoon/internal/lab/backend"
	"pontoon/internal/lab/traffic"
)

// How the demo has its endpoints probed: four times as often as by default, so
// that nobody has to wait long for a death to be found.
const (
	demoProbeInterval = 500 * time.Millisecond
	demoProbeTimeout  = 500 * time.Millisecond
	demoProbeFall     = 3 // the product's default
)

// How long the demo waits for an endpoint's death or return to be found, and how long it
// looks at what new connections do afterwards.
const (
	healthTimeout = 20 * time.Second
	healthWatch   = time.Second
)

// The kinds of EndpointReport.
const (
	endpointDeath  = "death"  // its server dies: the port is closed
	endpointReturn = "return" // it is started again
)

// EndpointReport is what the death of an endpoint's server, or its return, did. Times are in
// milliseconds.
type EndpointReport struct {
	Form     demoForm       `json:"form"`
	Kind     string         `json:"kind"`
	Endpoint string         `json:"endpoint"` // the host
	Address  netip.AddrPort `json:"address"`
	// AfterMS is the time until every node had found it and carried it out; GoalMS what the
	// probes' settings allow at most.
	AfterMS float64 `json:"after_ms"`
	GoalMS  float64 `json:"goal_ms"`
	// Failed are the new connections that were not served until then, Misdirected those that were
	// begun after it. New are those that were, of both.
	New         int `json:"new_connections"`
	Failed      int `json:"failed"`
	Misdirected int `json:"misdirected"`
	// Connections is how many long-lived ones there were, Own how many of them the endpoint had,
	// and Survived how many are left: at a death all but Own at least.
	Connections int `json:"connections"`
	Own         int `json:"own"`
	Survived    int `json:"survived"`
	Stalled     int `json:"stalled"`
	Corrupted   int `json:"corrupted"`
	// Error is what did not come as it should, "" if all did.
	Error string `json:"error,omitempty"`
}

// ok says whether the product held its promise.
func (er *EndpointReport) ok() bool {
	want := er.Connections
	if er.Kind == endpointDeath {
		want -= er.Own // these have died with their server
	}
	return er.Error == "" && er.Misdirected == 0 && er.Survived >= want && er.Stalled == 0 && er.Corrupted == 0
}

// fill takes what the long-lived connections felt.
func (er *EndpointReport) fill(r traffic.Result, problem error) {
	er.Connections, er.Survived, er.Stalled, er.Corrupted = r.Connections, r.Survived, r.Stalled, r.Corrupted
	if problem != nil {
		er.Error = problem.Error()
	}
}

// probeFlags are the flags of `service create` that say how endpoints are probed.
func probeFlags() []string {
	return []string{
		"--probe", "tcp", "--probe-interval", demoProbeInterval.String(), "--probe-timeout", demoProbeTimeout.String(),
		"--probe-fall", fmt.Sprint(demoProbeFall),
	}
}

// deathGoal is the longest a death may stay unfound: it happens right after a probe, and all that
// count then fail, the last one by its timeout.
const deathGoal = demoProbeFall*demoProbeInterval + demoProbeTimeout

// startEndpoints starts the endpoints' servers.
func (d *demo) startEndpoints(ctx context.Context, run func(func() error)) error {
	for _, ep := range d.lab.Endpoints() {
		srv, err := backend.New(backend.Config{
			Name: ep.Name(), Kind: backend.TCP, At: endpointAddr(ep), Place: ep, Logger: d.cfg.Logger,
		})
		if err != nil {
			return err
		}
		run(func() error { return srv.Run(ctx) })
		if err := srv.Set(ctx, backend.Behaviour{}); err != nil {
			return err
		}
		d.servers = append(d.servers, srv)
	}
	return nil
}

// endpointRound lets an endpoint's server die and come back. whole says whether it is back in
// service; what else the product did wrong stands in the report.
func (d *demo) endpointRound(ctx context.Context) (whole bool, err error) {
	victim := d.servers[len(d.servers)-1]
	d.tell.head("%s", d.form.title("endpoint"))
	died, err := d.endpointDies(ctx, victim)
	if err != nil {
		return false, err
	}
	again, err := d.reopenOwn(ctx)
	if err != nil {
		return false, fmt.Errorf("reopen the connections of a dead endpoint: %w", err)
	}
	d.tell.detail("the %d connections it had are opened again, of which %d had to be tried twice: all %d go to the rest",
		died.Connections-died.Survived, again, d.clients.Alive())
	died.Misdirected += again
	d.report.Endpoints = append(d.report.Endpoints, died)
	back, err := d.endpointReturns(ctx, victim)
	if err != nil {
		return false, err
	}
	d.report.Endpoints = append(d.report.Endpoints, back)
	return back.Error == "", nil
}

// reopenOwn puts new connections into the place of those that died with their endpoint. None should fail, not even one
// that gets the client's port of an attempt that the dead endpoint has refused seconds ago: again counts those that do.
func (d *demo) reopenOwn(ctx context.Context) (again int, err error) {
	err = within(ctx, serveTimeout, func(ctx context.Context) error {
		return WaitFor(ctx, "new connections", func(ctx context.Context) error {
			err := d.clients.Open(ctx)
			if err != nil {
				again++
			}
			return err
		})
	})
	return again, err
}

// endpointDies ends the server and watches the connections.
func (d *demo) endpointDies(ctx context.Context, victim *backend.Server) (er EndpointReport, err error) {
	er = EndpointReport{
		Form: d.form, Kind: endpointDeath, Endpoint: victim.Name(), Address: victim.At(),
		GoalMS: ms(deathGoal), Own: int(victim.Stats().Open),
	}
	w, began := d.clients.Window(), time.Now()
	if err := victim.Set(ctx, backend.Behaviour{Mode: backend.Dead}); err != nil {
		return er, err
	}
	d.tell.step("the server of %s has died; probes go out every %s here (2s by default), %d failures in a row count",
		victim.Name(), demoProbeInterval, demoProbeFall)
	found, problem := d.awaitHealth(ctx, victim, "down")
	if ctx.Err() != nil {
		return er, ctx.Err()
	}
	er.AfterMS = ms(found.Sub(began))
	w.Mark()
	problem = errors.Join(problem, within(ctx, progressTimeout, w.Wait))
	d.watchNew(ctx, &er, began, found)
	er.fill(w.Result(), problem)
	d.tellEndpoint(er, "died: out after %s, %d new connections misdirected after that (%d before); %d of %d others live",
		short(found.Sub(began)), er.Misdirected, er.Failed, min(er.Survived, er.Connections-er.Own), er.Connections-er.Own)
	return er, ctx.Err()
}

// endpointReturns starts the server again and waits until it is used.
func (d *demo) endpointReturns(ctx context.Context, victim *backend.Server) (er EndpointReport, err error) {
	er = EndpointReport{Form: d.form, Kind: endpointReturn, Endpoint: victim.Name(), Address: victim.At()}
	const rise = 2 // the product's default
	er.GoalMS = ms(rise*demoProbeInterval + demoProbeTimeout)
	served := victim.Stats().Requests
	w, began := d.clients.Window(), time.Now()
	if err := victim.Set(ctx, backend.Behaviour{}); err != nil {
		return er, err
	}
	d.tell.step("the server of %s is started again", victim.Name())
	found, problem := d.awaitHealth(ctx, victim, "up")
	if ctx.Err() != nil {
		return er, ctx.Err()
	}
	er.AfterMS = ms(found.Sub(began))
	if problem == nil {
		problem = within(ctx, serveTimeout, func(ctx context.Context) error {
			return WaitFor(ctx, "new connections to "+victim.Name(), func(context.Context) error {
				if victim.Stats().Requests == served {
					return errors.New("it has got none")
				}
				return nil
			})
		})
	}
	w.Mark()
	problem = errors.Join(problem, within(ctx, progressTimeout, w.Wait))
	d.watchNew(ctx, &er, began, found)
	er.fill(w.Result(), problem)
	er.Own = int(victim.Stats().Open)
	d.tellEndpoint(er, "is back: in after %s and taking new connections; %d of %d connections have not noticed",
		short(found.Sub(began)), er.Survived, er.Connections)
	return er, ctx.Err()
}

// watchNew looks a while longer at new connections and sums up those since began.
func (d *demo) watchNew(ctx context.Context, er *EndpointReport, began, found time.Time) {
	_ = within(ctx, healthWatch, func(ctx context.Context) error { <-ctx.Done(); return nil })
	ok, failed := d.prober.Began(began)
	_, er.Misdirected = d.prober.Began(found)
	er.New, er.Failed = ok, failed-er.Misdirected
}

// awaitHealth waits until every node knows the endpoint's health and has carried it out.
func (d *demo) awaitHealth(ctx context.Context, ep *backend.Server, health string) (found time.Time, err error) {
	err = within(ctx, healthTimeout, func(ctx context.Context) error {
		return WaitFor(ctx, ep.Name()+" to be "+health, func(ctx context.Context) error {
			for _, n := range d.lab.Nodes() {
				s, err := n.Status(ctx)
				if err != nil {
					return err
				}
				if err := s.CheckEndpoint(ep.At(), health); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return time.Now(), err
}

// tellEndpoint says in a line what a death or a return has cost.
func (d *demo) tellEndpoint(er EndpointReport, format string, args ...any) {
	say := d.tell.good
	if !er.ok() {
		say = d.tell.bad
	}
	say("endpoint %s "+format, slices.Concat([]any{er.Endpoint}, args)...)
	if er.Error != "" {
		d.tell.bad("%s", strings.ReplaceAll(er.Error, "\n", "; "))
	}
}
