package detect

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// session is the session of one end of a cable with the other.
func (c *cable) session(at int, v6 bool, cfg Config) Session {
	pattern := "10.99.0.%d"
	if v6 {
		pattern = "fd99::%d"
	}
	addr := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(pattern, i+1)) }
	return Session{Key: Key{Local: addr(at), Remote: addr(1 - at), Interface: c.links[at]}, Config: cfg}
}

func families(t *testing.T, test func(t *testing.T, v6 bool)) {
	t.Run("ipv4", func(t *testing.T) { test(t, false) })
	t.Run("ipv6", func(t *testing.T) { test(t, true) })
}

func TestAStoppedNeighbourIsFoundAndItsReturnToo(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		c := newCable(t)
		a, b := c.driver(0), c.driver(1)
		begin := time.Now()
		a.want(c.session(0, v6, fast))
		b.want(c.session(1, v6, fast))
		a.changed(begin, Up, DiagNone)
		b.changed(begin, Up, DiagNone)
		a.status("the agreed interval", func(s Status) bool {
			return s.TxInterval == 50*time.Millisecond && s.DetectionTime == 150*time.Millisecond && s.RemoteState == Up
		})
		stopped := b.signal(syscall.SIGSTOP)
		down := a.changed(stopped, Down, DiagExpired)
		t.Logf("found after %v", down.At.Sub(stopped))
		if took := down.At.Sub(stopped); took < 100*time.Millisecond {
			t.Errorf("found after %v: before three packets can have been missing", took)
		}
		woken := b.signal(syscall.SIGCONT)
		a.changed(woken, Up, DiagNone)
	})
}

// A process that stood still for three detection times reads what arrived
// meanwhile before it finds anything missing.
func TestAPauseOfOurOwnIsNoFailureOfTheNeighbour(t *testing.T) {
	c := newCable(t)
	a, b := c.driver(0), c.driver(1)
	begin := time.Now()
	slow := Config{DesiredMinTx: 100 * time.Millisecond, RequiredMinRx: 100 * time.Millisecond, DetectMult: 30} // b is patient with a
	a.want(c.session(0, false, Config{DesiredMinTx: 100 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond, DetectMult: 30}))
	slow.DesiredMinTx, slow.DetectMult = 50*time.Millisecond, 10 // a finds b missing after 500 ms
	b.want(c.session(1, false, slow))
	a.changed(begin, Up, DiagNone)
	b.changed(begin, Up, DiagNone)
	a.status("the short detection time", func(s Status) bool { return s.DetectionTime == 500*time.Millisecond })
	stopped := a.signal(syscall.SIGSTOP)
	timer := time.NewTimer(1500 * time.Millisecond)
	defer timer.Stop()
	<-timer.C
	woken := a.signal(syscall.SIGCONT)
	before := a.status("word after the pause", func(s Status) bool { return s.Received > 0 }).Received
	a.status("further packets", func(s Status) bool { return s.Received > before+20 })
	if a.downs(stopped) > 0 || b.downs(stopped) > 0 {
		t.Fatalf("the session went down although only this end stood still (from %v to %v)", stopped, woken)
	}
}

func TestTheEndOfASessionIsSaidAndNotWaitedFor(t *testing.T) {
	families(t, func(t *testing.T, v6 bool) {
		c := newCable(t)
		a, b := c.driver(0), c.driver(1)
		begin := time.Now()
		a.want(c.session(0, v6, fast))
		b.want(c.session(1, v6, fast))
		a.changed(begin, Up, DiagNone)
		b.changed(begin, Up, DiagNone)
		removed := time.Now()
		b.want()
		a.changed(removed, Down, DiagNeighbourDown)
		b.want(c.session(1, v6, fast))
		a.changed(removed, Up, DiagNone)
		ended := time.Now()
		_ = b.in.Close() // the driver's Run ends in good order
		a.changed(ended, Down, DiagNeighbourDown)
	})
}

func TestNewTimersDoNotCostTheSession(t *testing.T) {
	c := newCable(t)
	a, b := c.driver(0), c.driver(1)
	patient := fast
	patient.DetectMult = 40
	begin := time.Now()
	a.want(c.session(0, false, patient))
	b.want(c.session(1, false, patient))
	a.changed(begin, Up, DiagNone)
	b.changed(begin, Up, DiagNone)
	up := time.Now()
	for _, ms := range []time.Duration{200, 30, 100} {
		cfg := Config{DesiredMinTx: ms * time.Millisecond, RequiredMinRx: ms * time.Millisecond, DetectMult: 40}
		a.want(c.session(0, false, cfg))
		want := max(ms, 50) * time.Millisecond
		b.status(fmt.Sprintf("detection by forty times %v", want), func(s Status) bool { return s.DetectionTime == 40*want })
	}
	if a.downs(up)+b.downs(up) > 0 {
		t.Fatal("the session went down when its timers changed")
	}
}

func TestSessionsThatCannotBeAreRefused(t *testing.T) {
	addr := netip.MustParseAddr
	for name, s := range map[string]Session{
		"no interface": {Key: Key{Local: addr("10.0.0.1"), Remote: addr("10.0.0.2")}, Config: Config{}},
		"two families": {Key: Key{Local: addr("10.0.0.1"), Remote: addr("fd00::2"), Interface: "eth0"}, Config: Config{}},
		"no address":   {Key: Key{Local: addr("10.0.0.1"), Interface: "eth0"}, Config: Config{}},
		"mapped":       {Key: Key{Local: addr("::ffff:10.0.0.1"), Remote: addr("fd00::2"), Interface: "eth0"}, Config: Config{}},
		"too fast":     {Key: Key{Local: addr("10.0.0.1"), Remote: addr("10.0.0.2"), Interface: "eth0"}, Config: Config{DesiredMinTx: time.Microsecond}},
		"far too slow": {Key: Key{Local: addr("10.0.0.1"), Remote: addr("10.0.0.2"), Interface: "eth0"}, Config: Config{RequiredMinRx: time.Hour}},
	} {
		if err := NewDriver(Options{}).SetSessions([]Session{s}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// RFC 5881, 5: what was sent on this link has TTL 255; everything else may come from anywhere.
func TestPacketsFromBeyondTheLinkAreNotHeard(t *testing.T) {
	c := newCable(t)
	a, b := c.driver(0), c.driver(1)
	begin := time.Now()
	patient := Config{DesiredMinTx: 50 * time.Millisecond, RequiredMinRx: 50 * time.Millisecond, DetectMult: 100}
	a.want(c.session(0, false, patient))
	b.want(c.session(1, false, patient))
	a.changed(begin, Up, DiagNone)
	discr := b.status("a's discriminator", func(s Status) bool { return s.State == Up && s.RemoteDiscr != 0 }).RemoteDiscr
	forged := Packet{State: AdminDown, DetectMult: 3, MyDiscr: 99, YourDiscr: discr}.Append(nil)
	forge := func(ttl int) {
		t.Helper()
		cmd := c.in(1, "socat", "-u", "STDIN", fmt.Sprintf("UDP4-SENDTO:10.99.0.1:%d,ttl=%d", ControlPort, ttl))
		cmd.Stdin = bytes.NewReader(forged)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("socat: %v: %s", err, out)
		}
	}
	forging := time.Now()
	for _, ttl := range []int{1, 64, 254} {
		forge(ttl)
	}
	before := a.status("packets after the forged ones", func(s Status) bool { return s.State == Up }).Received
	a.status("packets after the forged ones", func(s Status) bool { return s.Received > before+3 })
	if a.downs(forging) > 0 {
		t.Fatal("a packet that was routed here ended the session")
	}
	forge(255)
	a.changed(forging, Down, DiagNeighbourDown)
}

// bfdd of a router suite, say, may have the port. The sessions say so, and come up once it lets go.
func TestAPortThatAnotherProgramHoldsIsToldAndTakenLater(t *testing.T) {
	c := newCable(t)
	holder := c.in(0, "socat", "-u", fmt.Sprintf("UDP4-RECVFROM:%d,fork", ControlPort), "STDOUT")
	c.start(holder)
	c.holds(0, ControlPort)
	a, b := c.driver(0), c.driver(1)
	begin := time.Now()
	a.want(c.session(0, false, fast))
	b.want(c.session(1, false, fast))
	s := a.status("the reason", func(s Status) bool { return s.Error != "" })
	if s.State != Down || !strings.Contains(s.Error, "3784") || !strings.Contains(s.Error, "in use") {
		t.Fatalf("%v: %q", s.State, s.Error)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	a.changed(begin, Up, DiagNone)
	a.status("no reason any more", func(s Status) bool { return s.State == Up && s.Error == "" })
}

// holds waits until some program at this end has the UDP port.
func (c *cable) holds(at int, port uint16) {
	c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		out, err := c.in(at, "ss", "-Hlun", fmt.Sprintf("sport = :%d", port)).CombinedOutput()
		if err != nil {
			c.t.Fatalf("ss: %v: %s", err, out)
		}
		if len(out) > 0 {
			return
		}
	}
	c.t.Fatalf("nobody has UDP port %d", port)
}

// What a neighbour says on parting tells its end from its failure.
func TestAPartingNeighbourIsToldFromAFailedOne(t *testing.T) {
	c := newCable(t)
	a, b := c.driver(0), c.driver(1)
	begin := time.Now()
	a.want(c.session(0, false, fast))
	b.want(c.session(1, false, fast))
	a.changed(begin, Up, DiagNone)
	b.changed(begin, Up, DiagNone)
	stopped := b.signal(syscall.SIGSTOP)
	a.changed(stopped, Down, DiagExpired)
	if s := a.now("the failure", func(s Status) bool { return s.State == Down }); s.Farewell || !s.WasUp {
		t.Fatalf("a neighbour that fell silent: %+v", s)
	}
	b.signal(syscall.SIGCONT)
	a.changed(stopped, Up, DiagNone)
	ended := time.Now()
	_ = b.in.Close()
	a.changed(ended, Down, DiagNeighbourDown)
	if s := a.now("the parting", func(s Status) bool { return s.State == Down }); !s.Farewell {
		t.Fatalf("a neighbour that said it stops: %+v", s)
	}
}

// now asks anew until the session is as ok says.
func (e *end) now(what string, ok func(Status) bool) Status {
	e.t.Helper()
	asked := time.Now()
	return e.await(what, func(r report) bool { return !r.Changed && r.At.After(asked) && ok(r.Status) }).Status
}

// While another program holds the port nobody takes what is posted, perhaps for ever.
func TestNothingIsKeptForASessionThatIsNotUp(t *testing.T) {
	d := NewDriver(Options{})
	key := Key{Local: netip.MustParseAddr("10.99.0.1"), Remote: netip.MustParseAddr("10.99.0.2"), Interface: "eth0"}
	if err := d.SetSessions([]Session{{Key: key, Config: fast}}); err != nil {
		t.Fatal(err)
	}
	d.Ask(key)
	d.PathFailed(key, DiagEchoFailed)
	for _, l := range d.loops {
		if len(l.waiting) > 0 {
			t.Errorf("%d events wait", len(l.waiting))
		}
	}
}
