package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

// product is the built program and a directory for all it makes.
type product struct {
	binary string
	tmp    string
}

// buildProduct builds the program as users do, or takes a copy of the one that PONTOON_BINARY
// names. The directory is short: Unix sockets of the demo's nodes lie below it.
func buildProduct(t *testing.T) product {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
	dir, err := os.MkdirTemp("", "ptcli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := product{binary: filepath.Join(dir, "pontoon"), tmp: filepath.Join(dir, "t")}
	if err := os.Mkdir(p.tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	if built := os.Getenv("PONTOON_BINARY"); built != "" {
		raw, err := os.ReadFile(built)
		if err == nil {
			err = os.WriteFile(p.binary, raw, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", p.binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return p
}

func (p product) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.binary, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+p.tmp)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) } // it has to clean up
	cmd.WaitDelay = time.Minute
	return cmd
}

// checkNothingLeft fails if the program left a file or a process.
func (p product) checkNothingLeft(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(p.tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left behind: %s", e.Name())
	}
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range processes {
		if exe, err := os.Readlink(link); err == nil && strings.HasPrefix(exe, p.binary) {
			t.Errorf("left running: %s", filepath.Dir(link))
		}
	}
}

func TestDemoCarriesConnectionsOverTheMastersDeath(t *testing.T) {
	roottest.Need(t)
	p := buildProduct(t)
	cmd := p.command(t, "demo", "--connections", "50", "--failures", "kill", "-o", "json")
	var out, story bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &story
	if err := cmd.Run(); err != nil {
		t.Fatalf("demo: %v\n%s%s", err, story.String(), out.String())
	}
	// The keys are those of the contract, spelt here once more on purpose.
	var report struct {
		Nodes    int `json:"nodes"`
		Failures []struct {
			Kind             string  `json:"kind"`
			Victim           string  `json:"victim"`
			Successor        string  `json:"successor"`
			BlackoutMS       float64 `json:"blackout_ms"`
			Connections      int     `json:"connections"`
			Survived         int     `json:"survived"`
			Reset            int     `json:"reset"`
			Stalled          int     `json:"stalled"`
			Corrupted        int     `json:"corrupted"`
			NewConnectionsOK bool    `json:"new_connections_ok"`
		} `json:"failures"`
		Endpoints []struct {
			Kind        string  `json:"kind"`
			Endpoint    string  `json:"endpoint"`
			AfterMS     float64 `json:"after_ms"`
			New         int     `json:"new_connections"`
			Misdirected int     `json:"misdirected"`
			Connections int     `json:"connections"`
			Own         int     `json:"own"`
			Survived    int     `json:"survived"`
		} `json:"endpoints"`
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("standard output is not one JSON object: %v\n%s", err, out.String())
	}
	if report.Nodes != 3 || len(report.Failures) != 1 {
		t.Fatalf("nodes and failures: %+v", report)
	}
	f := report.Failures[0]
	if f.Kind != "kill" || f.Victim == "" || f.Successor == "" || f.Victim == f.Successor || f.BlackoutMS <= 0 {
		t.Errorf("failure: %+v", f)
	}
	if f.Connections != 50 || f.Survived != 50 || f.Reset+f.Stalled+f.Corrupted != 0 || !f.NewConnectionsOK {
		t.Errorf("connections: %+v", f)
	}
	if len(report.Endpoints) != 2 {
		t.Fatalf("endpoints: %+v", report.Endpoints)
	}
	death, back := report.Endpoints[0], report.Endpoints[1]
	if death.Kind != "death" || death.AfterMS <= 0 || death.New == 0 || death.Misdirected != 0 ||
		death.Survived < death.Connections-death.Own || death.Survived == death.Connections {
		t.Errorf("death: %+v", death)
	}
	if back.Kind != "return" || back.Endpoint != death.Endpoint || back.Survived != 50 {
		t.Errorf("return: %+v", back)
	}
	p.checkNothingLeft(t)
}

// Behind a router the same failure is shown twice: with a master, and with all nodes active.
func TestDemoShowsBothFormsOfBGP(t *testing.T) {
	roottest.Need(t)
	p := buildProduct(t)
	cmd := p.command(t, "demo", "--bgp", "--connections", "50", "--failures", "kill", "-o", "json")
	var out, story bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &story
	if err := cmd.Run(); err != nil {
		t.Fatalf("demo: %v\n%s%s", err, story.String(), out.String())
	}
	var report struct {
		Failures []struct {
			Form             string  `json:"form"`
			Kind             string  `json:"kind"`
			Successor        string  `json:"successor"`
			RouterMS         float64 `json:"router_ms"`
			Connections      int     `json:"connections"`
			Survived         int     `json:"survived"`
			NewConnectionsOK bool    `json:"new_connections_ok"`
		} `json:"failures"`
		OK bool `json:"ok"`
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatalf("standard output is not one JSON object: %v\n%s", err, out.String())
	}
	if !report.OK || len(report.Failures) != 2 {
		t.Fatalf("report: %+v", report)
	}
	for i, form := range []string{"bgp-backup", "bgp-ecmp"} {
		f := report.Failures[i]
		if f.Form != form || f.Kind != "kill" || (f.Successor == "") != (form == "bgp-ecmp") || f.RouterMS <= 0 ||
			f.Connections != 50 || f.Survived != 50 || !f.NewConnectionsOK {
			t.Errorf("failure: %+v", f)
		}
	}
	p.checkNothingLeft(t)
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	roottest.Need(t)
	p := buildProduct(t)
	cmd := p.command(t, "demo", "--connections", "10", "--failures", "kill")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "has begun a cluster") {
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	_, _ = io.Copy(io.Discard, pipe) // until it has closed its end
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Errorf("an interrupted demo ends with %v, want exit status %d; it said:\n%s", err, exitFailed, complaint.String())
	}
	p.checkNothingLeft(t)
}

// TestKeptDemoServesUntilItIsRemoved follows what a kept demo prints.
func TestKeptDemoServesUntilItIsRemoved(t *testing.T) {
	roottest.Need(t)
	p := buildProduct(t)
	run := func(args ...string) string {
		t.Helper()
		out, err := p.command(t, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("pontoon %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	story := run("demo", "--keep", "--connections", "5", "--failures", "")
	prefix := regexp.MustCompile(`demo --clean (pt[0-9a-f]+)`).FindStringSubmatch(story)
	if prefix == nil {
		t.Fatalf("it does not say how to remove it:\n%s", story)
	}
	removed := false
	t.Cleanup(func() {
		if !removed {
			clean := exec.Command(p.binary, "demo", "--clean", prefix[1])
			clean.Env = append(os.Environ(), "TMPDIR="+p.tmp)
			out, err := clean.CombinedOutput()
			t.Logf("remove the demo: %v %s", err, out)
		}
	})
	socket := regexp.MustCompile(`--socket (\S+) status`).FindStringSubmatch(story)
	if socket == nil {
		t.Fatalf("it does not name a socket:\n%s", story)
	}
	if status := run("--socket", socket[1], "status"); !strings.Contains(status, "3 of 3 nodes healthy") {
		t.Errorf("status:\n%s", status)
	}
	client := regexp.MustCompile(`--net=(\S+) curl http://(\S+)/`).FindStringSubmatch(story)
	if client == nil {
		t.Fatalf("it does not say how to ask the service:\n%s", story)
	}
	ask := exec.CommandContext(t.Context(), "nsenter", "--net="+client[1], "socat", "-T", "5", "-", "TCP:"+client[2]+":80,connect-timeout=5")
	ask.Stdin = strings.NewReader("GET / HTTP/1.0\r\nHost: " + client[2] + "\r\nAccept: */*\r\n\r\n")
	if answer, err := ask.CombinedOutput(); err != nil || !strings.Contains(string(answer), " here; you come from ") {
		t.Errorf("the service answers %q (%v)", answer, err)
	}
	run("demo", "--clean", prefix[1])
	removed = true
	p.checkNothingLeft(t)
}
