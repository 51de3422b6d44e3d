package detect

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// probed is the path from the first end of a cable to the second.
func (c *cable) probed(v6 bool) Path {
	return Path{c.session(0, v6, Config{}).Key, EchoConfig{}}
}

// The point of echoes: what answers is the neighbour's data plane, so a daemon that stands
// still keeps its path, and a machine that is gone loses it within tens of milliseconds.
func TestEchoesAskTheNeighboursDataPlaneAndNotItsDaemon(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		c := newCable(t)
		peer := c.dataplane(1)
		us := c.echoer(0)
		began := time.Now()
		us.probe(c.probed(v6))
		us.path("up", began, func(r report) bool { return r.State == "up" })
		peer.signal(syscall.SIGSTOP)
		answered := us.echo("answers", func(s EchoStatus) bool { return s.State == Up }).Answered
		us.echo("answers while the daemon is stopped", func(s EchoStatus) bool { return s.State == Up && s.Answered > answered+50 })
		cut := time.Now()
		c.ip("-n", c.names[1], "link", "set", c.links[1], "down")
		down := us.path("down", cut, func(r report) bool { return r.State == "down" })
		t.Logf("found %v after the wire was cut (%s)", down.At.Sub(cut), down.Diag)
	})
}

// The process that probes is stopped again and again, for up to ten times what a verdict takes: whatever
// it finds when it wakes, it finds nobody missing.
func TestAStalledProberFindsNobodyMissing(t *testing.T) {
	c := newCable(t)
	c.dataplane(1)
	us := c.echoer(0)
	began := time.Now()
	us.probe(c.probed(false))
	us.path("up", began, func(r report) bool { return r.State == "up" })
	up := time.Now()
	for i := range 24 {
		us.signal(syscall.SIGSTOP)
		<-time.After(time.Duration(1+i*17%600) * time.Millisecond)
		us.signal(syscall.SIGCONT)
		<-time.After(time.Duration(1+i*7%50) * time.Millisecond)
	}
	answered := us.echo("answers", func(s EchoStatus) bool { return s.State == Up }).Answered
	us.echo("answers after the last pause", func(s EchoStatus) bool { return s.Answered > answered+10 })
	if n := us.downs(up); n > 0 {
		t.Fatalf("the path was called down %d times while only the prober stood still", n)
	}
}

// A machine whose data plane is gone is not a dead machine.
func TestAMissingDataPlaneIsToldFromAMissingMachine(t *testing.T) {
	c := newCable(t)
	us := c.echoer(0)
	us.probe(c.probed(false))
	us.echo("the kernel's refusal", func(s EchoStatus) bool { return s.State == Down && s.Why == Refused })
	began := time.Now()
	c.dataplane(1)
	us.path("up once there is a data plane", began, func(r report) bool { return r.State == "up" })
}

func TestAPathThatCannotBeProbedSaysWhy(t *testing.T) {
	c := newCable(t)
	us := c.echoer(0)
	p := c.probed(false)
	p.Interface = "nowhere"
	us.probe(p)
	s := us.echo("the reason", func(s EchoStatus) bool { return s.Why == Unsent && s.Error != "" })
	t.Log(s.Error)
}

func TestProbingCanBeMadeSlowerAndEnds(t *testing.T) {
	c := newCable(t)
	c.dataplane(1)
	us := c.echoer(0)
	began := time.Now()
	p := c.probed(false)
	us.probe(p)
	us.path("up", began, func(r report) bool { return r.State == "up" })
	p.Config.Interval = time.Minute
	us.probe(p)
	var last uint64
	for calm := 0; calm < 5; {
		s := us.echo("figures", func(EchoStatus) bool { return true })
		if s.Sent == last {
			calm++
		} else {
			calm = 0
		}
		last = s.Sent
		<-time.After(100 * time.Millisecond)
	}
	us.probe()
	us.paths(0)
}

func (e *end) probe(paths ...Path) { e.tell(append([]Path{}, paths...)) }

func (e *end) path(what string, since time.Time, ok func(report) bool) report {
	e.t.Helper()
	return e.await("the path is "+what, func(r report) bool { return r.Changed && r.At.After(since) && ok(r) })
}

// echo asks anew until the path is as ok says.
func (e *end) echo(what string, ok func(EchoStatus) bool) EchoStatus {
	e.t.Helper()
	asked := time.Now()
	return e.await(what, func(r report) bool { return !r.Changed && r.At.After(asked) && r.Echo.Local.IsValid() && ok(r.Echo) }).Echo
}

func (e *end) paths(n int) {
	e.t.Helper()
	asked := time.Now()
	e.await(fmt.Sprintf("%d paths", n), func(r report) bool { return !r.Changed && r.At.After(asked) && r.Count == n+1 })
}
