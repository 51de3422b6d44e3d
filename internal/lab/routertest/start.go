package routertest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// Kind is whose router it is.
type Kind string

// The kinds.
const (
	BIRD Kind = "bird"
	FRR  Kind = "frr"
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{BIRD, FRR} }

const (
	birdProgram  = "/usr/sbin/bird"
	birdClient   = "/usr/sbin/birdc"
	frrPrograms  = "/usr/lib/frr"
	vtyshProgram = "/usr/bin/vtysh"
	patience     = 30 * time.Second
)

// Daemon is a router's software on one router of the lab. Its methods fail the test they are given.
type Daemon struct {
	kind  Kind
	host  *lab.Router
	nodes int
	dir   string
	procs []*lab.Process
}

// Start runs a router of the kind on the host, for so many nodes, and returns when it takes questions. The test is
// skipped when the programs are not installed, or fails where skipping is forbidden.
func Start(t testing.TB, kind Kind, host *lab.Router, nodes int, o Options) *Daemon {
	t.Helper()
	need(t, kind)
	// Not below the lab's directory: FRR gives up its rights to a user who may not look in there.
	dir, err := os.MkdirTemp("/run", "ptrouter")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &Daemon{kind: kind, host: host, nodes: nodes, dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s on %s:\n%s", kind, host.Name(), d.Dump())
		}
		d.end(t, syscall.SIGKILL)
	})
	d.Change(t, o)
	return d
}

// Change begins anew with other options.
func (d *Daemon) Change(t testing.TB, o Options) {
	t.Helper()
	config, err := render(d.kind, d.host, d.nodes, o)
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.file("router.conf"), config)
	d.Restart(t)
}

func (d *Daemon) file(name string) string { return filepath.Join(d.dir, name) }

// Kind is whose router it is.
func (d *Daemon) Kind() Kind { return d.kind }

// Restart begins anew with an unchanged configuration. A router that runs is killed first.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	d.end(t, syscall.SIGKILL)
	if d.kind == BIRD {
		d.startBIRD(t)
	} else {
		d.startFRR(t)
	}
}

// Stop ends the router in order and waits until it is gone; Kill does not ask.
func (d *Daemon) Stop(t testing.TB) { t.Helper(); d.end(t, syscall.SIGTERM) }

// Kill ends the router without a last word.
func (d *Daemon) Kill(t testing.TB) { t.Helper(); d.end(t, syscall.SIGKILL) }

func (d *Daemon) end(t testing.TB, sig os.Signal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The last started first: zebra takes the routes out that bgpd had.
	for i := len(d.procs) - 1; i >= 0; i-- {
		p := d.procs[i]
		if err := p.Signal(sig); err != nil {
			t.Error(err)
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			t.Errorf("%s does not end: %v", d.kind, p.Kill(context.Background()))
		}
	}
	d.procs = nil
}

func (d *Daemon) startBIRD(t testing.TB) {
	t.Helper()
	_ = os.Remove(d.file("ctl"))
	d.run(t, birdProgram, "-f", "-c", d.file("router.conf"), "-s", d.file("ctl"), "-P", d.file("pid"), "-D", d.file("log"))
	d.awaitFile(t, "ctl")
}

// startFRR runs FRR's daemons with empty configurations and has vtysh hand out the whole one, as FRR's own
// start script does.
func (d *Daemon) startFRR(t testing.TB) {
	t.Helper()
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		write(t, d.file(name+".conf"), "log file "+d.file(name+".log")+"\n")
		for _, left := range []string{name + ".vty", name + ".pid"} {
			_ = os.Remove(d.file(left))
		}
	}
	write(t, d.file("vtysh.conf"), "")
	_ = os.Remove(d.file("zserv.api"))
	roottest.Own(t, d.dir, "frr")
	more := map[string][]string{"bfdd": {"--bfdctl", d.file("bfdd.sock")}, "bgpd": {"-p", "179"}}
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		d.run(t, filepath.Join(frrPrograms, name), append([]string{
			"-f", d.file(name + ".conf"), "-i", d.file(name + ".pid"), "-z", d.file("zserv.api"),
			"--vty_socket", d.dir, "-A", "127.0.0.1", "-P", "0", "-u", "frr", "-g", "frr",
		}, more[name]...)...)
		d.awaitFile(t, name+".vty")
	}
	out, err := exec.Command(vtyshProgram, "--vty_socket", d.dir, "--config_dir", d.dir, "-f", d.file("router.conf")).CombinedOutput()
	if err != nil || strings.Contains(string(out), "%") { // so begins every complaint
		t.Fatalf("vtysh: %v: %s", err, out)
	}
}

// run starts one program of the router in the host's namespace.
func (d *Daemon) run(t testing.TB, program string, args ...string) {
	t.Helper()
	f, err := os.OpenFile(d.file(filepath.Base(program)+".out"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = f, f, "/"
	p, err := d.host.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	d.procs = append(d.procs, p)
}

// awaitFile waits for a socket that tells that a program listens.
func (d *Daemon) awaitFile(t testing.TB, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := lab.WaitFor(ctx, string(d.kind)+"'s "+name, func(context.Context) error {
		_, err := os.Stat(d.file(name))
		return err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, d.Dump())
	}
}

func need(t testing.TB, kind Kind) {
	t.Helper()
	programs := []string{birdProgram, birdClient}
	if kind == FRR {
		programs = []string{filepath.Join(frrPrograms, "bgpd"), vtyshProgram}
	}
	for _, p := range programs {
		roottest.NeedProgram(t, p)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tail is the end of a log.
func tail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) == 0 {
		return ""
	}
	const most = 4000
	return filepath.Base(path) + ":\n" + string(raw[max(0, len(raw)-most):]) + "\n"
}
