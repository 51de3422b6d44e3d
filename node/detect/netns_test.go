package detect

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pontoon/bpf"
	"pontoon/bpf/bpftest"
	"pontoon/internal/roottest"
)

// A driver opens its sockets where its process lives, so each side of a test is
// a process of its own in a namespace of its own: this test binary again.

const (
	childVariable = "PONTOON_TEST_DETECT_CHILD"
	patience      = 20 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := child(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// report is what a child says of a session, on every change and when asked.
type report struct {
	At      time.Time
	Changed bool
	State   string
	Diag    string
	Status  Status
	Echo    EchoStatus
	Count   int // 1 more than there are paths
	Resume  Resume
}

// child is what the environment asks for.
func child(in io.Reader, out io.Writer) error {
	switch os.Getenv(childVariable) {
	case "echo":
		return echoChild(in, out)
	case "dataplane":
		return dataplaneChild(in, out)
	}
	return driverChild(in, out)
}

// dataplaneChild loads a data plane on an interface until in ends.
func dataplaneChild(in io.Reader, out io.Writer) error {
	d, err := bpf.Open(bpf.Options{PinDir: os.Getenv("PONTOON_TEST_DETECT_PINS"), Interfaces: []string{os.Getenv("PONTOON_TEST_DETECT_LINK")}, MaxFlows: 1024, MaxHalfOpen: 1024})
	if err != nil {
		return err
	}
	_ = json.NewEncoder(out).Encode(report{At: time.Now(), Changed: true, State: "loaded"})
	_, _ = io.Copy(io.Discard, in)
	return d.Close()
}

// echoChild is driverChild for an Echoer.
func echoChild(in io.Reader, out io.Writer) error {
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	say := func(r report) {
		mu.Lock()
		defer mu.Unlock()
		r.At = time.Now()
		_ = enc.Encode(r)
	}
	e := NewEchoer(EchoOptions{Notify: func(_ Key, c EchoChange) {
		say(report{Changed: true, State: c.To.String(), Diag: string(c.Why)})
	}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if lines.Text() == "" {
			paths := e.Paths()
			for _, s := range paths {
				say(report{State: s.State.String(), Echo: s, Count: len(paths) + 1})
			}
			if len(paths) == 0 {
				say(report{Count: 1})
			}
			continue
		}
		var want []Path
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			return err
		}
		if err := e.SetPaths(want); err != nil {
			return err
		}
	}
	cancel()
	return <-done
}

// driverChild runs a driver: each line of in is a whole wanted set, or empty to be told
// how things are; each line of out a report. The end of in ends it.
func driverChild(in io.Reader, out io.Writer) error {
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	say := func(r report) {
		mu.Lock()
		defer mu.Unlock()
		r.At = time.Now()
		_ = enc.Encode(r)
	}
	d := NewDriver(Options{
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Notify: func(k Key, c Change) {
			say(report{Changed: true, State: c.To.String(), Diag: c.Diag.String(), Status: Status{Key: k}})
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if lines.Text() == "" {
			for _, s := range d.Sessions() {
				say(report{State: s.State.String(), Diag: s.Diag.String(), Status: s})
			}
			continue
		}
		if span, ok := strings.CutPrefix(lines.Text(), "rest "); ok {
			if err := restChild(d, span, say); err != nil {
				return err
			}
			continue
		}
		var want []Session
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			return err
		}
		if err := d.SetSessions(want); err != nil {
			return err
		}
	}
	cancel()
	return <-done
}

// restChild has all sessions rest, and says how to go on with them.
func restChild(d *Driver, span string, say func(report)) error {
	length, err := time.ParseDuration(span)
	if err != nil {
		return err
	}
	var keys []Key
	for _, s := range d.Sessions() {
		keys = append(keys, s.Key)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rest, err := d.Rest(ctx, keys, length)
	for _, r := range rest {
		say(report{State: "resting", Resume: r})
	}
	return err
}

// cable is two namespaces with a wire between them: 10.99.0.1 and .2, fd99::1 and ::2.
type cable struct {
	t     *testing.T
	names [2]string
	links [2]string
}

func newCable(t *testing.T) *cable {
	t.Helper()
	roottest.Need(t)
	id := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano()%1_000_000)
	c := &cable{t: t, names: [2]string{"ptbfda-" + id, "ptbfdb-" + id}, links: [2]string{"ptbfd0", "ptbfd1"}}
	t.Cleanup(func() {
		for _, name := range c.names {
			_ = exec.Command("ip", "netns", "del", name).Run()
		}
	})
	for _, name := range c.names {
		c.ip("netns", "add", name)
	}
	c.ip("-n", c.names[0], "link", "add", c.links[0], "type", "veth", "peer", "name", c.links[1], "netns", c.names[1])
	for i, name := range c.names {
		for _, a := range []string{fmt.Sprintf("10.99.0.%d/24", i+1), fmt.Sprintf("fd99::%d/64", i+1)} {
			args := []string{"-n", name, "addr", "add", a, "dev", c.links[i]}
			if strings.Contains(a, ":") {
				args = append(args, "nodad")
			}
			c.ip(args...)
		}
		c.ip("-n", name, "link", "set", "lo", "up")
		c.ip("-n", name, "link", "set", c.links[i], "up")
	}
	return c
}

func (c *cable) ip(args ...string) {
	c.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// in is a command that runs at one end.
func (c *cable) in(end int, name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + filepath.Join("/run/netns", c.names[end]), name}, args...)...)
}

// start starts what is ended with the test.
func (c *cable) start(cmd *exec.Cmd) {
	c.t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// end is a driver at one end of a cable.
type end struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser

	mu  sync.Mutex
	log []report
}

func (c *cable) driver(at int) *end { return c.child(at, "driver") }

func (c *cable) echoer(at int) *end { return c.child(at, "echo") }

// dataplane loads a data plane at one end, in a process of its own.
func (c *cable) dataplane(at int) *end {
	c.t.Helper()
	pins := bpftest.PinDir(c.t)
	e := c.child(at, "dataplane", "PONTOON_TEST_DETECT_PINS="+pins, "PONTOON_TEST_DETECT_LINK="+c.links[at])
	e.await("the data plane is loaded", func(r report) bool { return r.State == "loaded" })
	return e
}

func (c *cable) child(at int, kind string, env ...string) *end {
	c.t.Helper()
	cmd := c.in(at, os.Args[0])
	cmd.Env = append(append(os.Environ(), childVariable+"="+kind), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	e := &end{t: c.t, cmd: cmd, in: in}
	c.start(cmd)
	go func() {
		for dec := json.NewDecoder(out); ; {
			var r report
			if dec.Decode(&r) != nil {
				return
			}
			e.mu.Lock()
			e.log = append(e.log, r)
			e.mu.Unlock()
		}
	}()
	return e
}

// want gives the driver its whole set.
func (e *end) want(sessions ...Session) { e.tell(append([]Session{}, sessions...)) }

// tell gives the child a whole wanted set.
func (e *end) tell(set any) {
	e.t.Helper()
	b, err := json.Marshal(set)
	if err != nil {
		e.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(e.in, "%s\n", b); err != nil {
		e.t.Fatal(err)
	}
}

// signal stops or continues the driver's process, which nsenter has become, and returns when that began.
func (e *end) signal(s syscall.Signal) time.Time {
	e.t.Helper()
	before := time.Now()
	if err := e.cmd.Process.Signal(s); err != nil {
		e.t.Fatal(err)
	}
	return before
}

// changed waits for a change after since that looks like this.
func (e *end) changed(since time.Time, state State, diag Diag) report {
	e.t.Helper()
	return e.await(fmt.Sprintf("a change to %v (%v)", state, diag), func(r report) bool {
		return r.Changed && r.At.After(since) && r.State == state.String() && r.Diag == diag.String()
	})
}

// status waits until a session is as ok says.
func (e *end) status(what string, ok func(Status) bool) Status {
	e.t.Helper()
	return e.await(what, func(r report) bool { return !r.Changed && ok(r.Status) }).Status
}

func (e *end) await(what string, ok func(report) bool) report {
	e.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	from := 0
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		e.mu.Lock()
		for _, r := range e.log[from:] {
			if ok(r) {
				e.mu.Unlock()
				return r
			}
		}
		e.mu.Unlock()
		_, _ = io.WriteString(e.in, "\n")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.t.Fatalf("%s did not come within %v; the last reports: %+v", what, patience, e.log[max(0, len(e.log)-5):])
	return report{}
}

// downs is how often a session left the state Up since then.
func (e *end) downs(since time.Time) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, r := range e.log {
		if r.Changed && r.At.After(since) && r.State == Down.String() {
			n++
		}
	}
	return n
}
