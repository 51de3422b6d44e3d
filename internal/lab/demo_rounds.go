package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab/traffic"
)

// successorTimeout bounds the wait for somebody to take over. A stopped
// daemon with a living kernel is left in peace for a grace of some seconds by
// default, so this is well above it.
const successorTimeout = 30 * time.Second

// talkInterval is how often a long wait says how things stand.
const talkInterval = 2 * time.Second

// failure is one way to hurt a node and to mend it again.
type failure struct {
	done string // told when it is done, with the victim's name
	back string // told when it is undone
	hurt func(context.Context, *Node) error
	mend func(context.Context, *Node) error
}

// failures maps each kind to what it does.
func failures() map[string]failure {
	return map[string]failure{
		FailKill: {
			done: "%s has lost its power: links down, process killed, kernel forgotten",
			back: "%s has power again and boots with its old disk",
			hurt: func(ctx context.Context, n *Node) error { return n.PowerOff(ctx) },
			mend: func(ctx context.Context, n *Node) error { return n.PowerOn(ctx) },
		},
		FailLink: {
			done: "%s has lost all its links",
			back: "%s has its links again",
			hurt: func(_ context.Context, n *Node) error { return n.LinksDown() },
			mend: func(_ context.Context, n *Node) error { return n.LinksUp() },
		},
		FailPause: {
			done: "%s is stopped (SIGSTOP); its kernel still forwards",
			back: "%s goes on (SIGCONT)",
			hurt: func(_ context.Context, n *Node) error { return n.Pause() },
			mend: func(_ context.Context, n *Node) error { return n.Resume() },
		},
	}
}

// rounds makes the failures one after the other, and lets an endpoint die and come back after the
// first of them. A round in which something did not come as it should is reported, and the next
// one is made as long as the cluster is whole again.
func (d *demo) rounds(ctx context.Context) error {
	for i, kind := range d.cfg.Failures {
		fr, whole, err := d.round(ctx, kind)
		if err != nil {
			return err
		}
		d.report.Failures = append(d.report.Failures, fr)
		if whole && i == 0 {
			if err := d.reopen(ctx); err != nil {
				return err
			}
			if whole, err = d.endpointRound(ctx); err != nil {
				return err
			}
		}
		if !whole {
			d.tell.bad("not everything is well again; no more failures are made")
			return nil
		}
		if i < len(d.cfg.Failures)-1 {
			if err := d.reopen(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// reopen puts new connections into the place of lost ones.
func (d *demo) reopen(ctx context.Context) error {
	alive := d.clients.Alive()
	if alive == d.cfg.Connections {
		return nil
	}
	d.tell.detail("reopening %d lost connections", d.cfg.Connections-alive)
	return d.clients.Open(ctx)
}

// round makes one failure and heals it. The error is of the demo itself; what
// the product did wrong stands in the report.
func (d *demo) round(ctx context.Context, kind string) (fr FailureReport, whole bool, err error) {
	f := failures()[kind]
	victim, err := d.pickVictim(ctx)
	if err != nil {
		return fr, false, err
	}
	fr = FailureReport{Form: d.form, Kind: kind, Victim: victim.Name()}
	d.tell.head("%s", d.form.title(kind))

	w := d.clients.Window()
	d.prober.Window()
	began := time.Now()
	if err := f.hurt(ctx, victim); err != nil {
		return fr, false, err
	}
	w.Mark()
	d.tell.step(f.done, d.victimWords(victim))
	var problems []error
	problems = append(problems, d.watchTakeover(ctx, w, &fr, victim, began))
	if ctx.Err() != nil {
		return fr, false, ctx.Err()
	}
	out := w.Result()

	back := d.clients.Window()
	if err := f.mend(ctx, victim); err != nil {
		return fr, false, err
	}
	d.tell.step(f.back, victim.Name())
	wholeErr := d.awaitWhole(ctx)
	if wholeErr == nil {
		d.tell.detail("%s is alive, ready and in sync again", victim.Name())
		back.Mark()
		problems = append(problems, within(ctx, progressTimeout, back.Wait))
	}
	if ctx.Err() != nil {
		return fr, false, ctx.Err()
	}
	fr.fill(out, back.Result(), errors.Join(append(problems, wholeErr)...))
	d.tellRound(fr)
	return fr, wholeErr == nil, nil
}

func (d *demo) awaitMasterWithin(ctx context.Context, not string, asked []*Node) (m string, epoch uint64, err error) {
	err = within(ctx, successorTimeout, func(ctx context.Context) error {
		m, epoch, err = d.awaitMaster(ctx, not, asked)
		return err
	})
	return m, epoch, err
}

// watchTakeover waits for a successor, for all connections to go on by it and
// for new ones to be served. It returns what did not come.
func (d *demo) watchTakeover(ctx context.Context, w *traffic.Window, fr *FailureReport, victim *Node, began time.Time) error {
	var others []*Node
	for _, n := range d.lab.Nodes() {
		if n != victim {
			others = append(others, n)
		}
	}
	var (
		epoch    uint64
		problems []error
	)
	err := d.talking(ctx, w, began, func() (err error) {
		err = d.awaitRouter(ctx, fr, victim, began)
		if d.form.hasMaster() {
			var merr error
			epoch, merr = d.awaitSuccessor(ctx, fr, victim, others, began)
			err = errors.Join(err, merr)
		}
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		d.tell.bad("nobody took over within %s", successorTimeout)
		problems = append(problems, err)
	}
	// With or without a successor: how do the connections stand from here on?
	w.Mark()
	if err := within(ctx, progressTimeout, w.Wait); err != nil {
		problems = append(problems, err)
	} else {
		d.tell.detail("%d connections go on, %s after the failure", w.Result().Survived, short(time.Since(began)))
	}
	err = within(ctx, serveTimeout, func(ctx context.Context) error { return d.prober.Succeeding(ctx, steadyProbes) })
	fr.NewConnectionsOK = err == nil
	fr.NewOutageMS = ms(d.prober.Result().Outage)
	if err != nil {
		problems = append(problems, fmt.Errorf("new connections are not served: %w", err))
	}
	if fr.Successor != "" {
		problems = append(problems, d.awaitTimeline(ctx, others[0], fr, epoch))
	}
	return errors.Join(problems...)
}

// awaitSuccessor waits until the others name one new master.
func (d *demo) awaitSuccessor(ctx context.Context, fr *FailureReport, victim *Node, others []*Node, began time.Time) (epoch uint64, err error) {
	successor, epoch, err := d.awaitMasterWithin(ctx, victim.Name(), others)
	if err != nil {
		return 0, fmt.Errorf("no successor: %w", err)
	}
	fr.Successor, fr.TakeoverMS = successor, ms(time.Since(began))
	d.tell.step("%s is the new master (epoch %d), %s after the failure", successor, epoch, short(time.Since(began)))
	return epoch, nil
}

// timelineTimeout bounds the wait for a timeline: the new master records it when
// it has forwarded a packet, or 2 s after its election.
const timelineTimeout = 8 * time.Second

// awaitTimeline waits until the cluster tells what the failover's time was spent on.
func (d *demo) awaitTimeline(ctx context.Context, asked *Node, fr *FailureReport, epoch uint64) error {
	return within(ctx, timelineTimeout, func(ctx context.Context) error {
		return WaitFor(ctx, "the failover's timeline", func(ctx context.Context) error {
			s, err := asked.Status(ctx)
			if err != nil {
				return err
			}
			f, ok := s.Failover("default", epoch)
			if !ok {
				return fmt.Errorf("epoch %d has none yet", epoch)
			}
			fr.Parts = f.Parts
			d.tell.detail("by the cluster's own clock, in ms: %s", f.Timeline())
			return nil
		})
	})
}

// talking runs fn and says now and then how the connections do meanwhile.
func (d *demo) talking(ctx context.Context, w *traffic.Window, began time.Time, fn func() error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.Go(func() error {
		tick := time.NewTicker(talkInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r := w.Result()
				d.tell.detail("%s: nobody has taken over yet; %d of %d connections go on",
					short(time.Since(began)), r.Survived, r.Connections)
			case <-ctx.Done():
				return nil
			}
			w.Mark()
		}
	})
	err := fn()
	stop()
	return errors.Join(err, g.Wait())
}

// tellRound says in a line or two what one failure cost.
func (d *demo) tellRound(fr FailureReport) {
	say := d.tell.good
	if !fr.ok() {
		say = d.tell.bad
	}
	say("%s: blackout %.0f ms, %d of %d connections survived, %d reset, %d stalled, %d corrupted",
		fr.Kind, fr.BlackoutMS, fr.Survived, fr.Connections, fr.Reset, fr.Stalled, fr.Corrupted)
	if fr.Error != "" {
		d.tell.bad("%s", strings.ReplaceAll(fr.Error, "\n", "; "))
	}
}
