package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pontoon/fsm"
	"pontoon/web"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pontoon": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PONTOON_SOCKET", env.WorkDir+"/p.sock")
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": scriptDaemon,
			"mute":   scriptMute,

			"exitcode":      scriptExitCode,
			"lastline":      scriptLastLine,
			"onelinestderr": scriptOneLineStderr,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// scriptDaemon serves the real API over a made-up node on PONTOON_SOCKET until
// the script ends: "daemon cluster" as lb1 of three nodes, "daemon fresh NAME"
// as a node in no cluster, "daemon last" as a last voter.
func scriptDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: daemon cluster|last|fresh NAME")
	}
	var d *fakeDaemon
	switch args[0] {
	case "cluster":
		d = newFakeCluster()
	case "last":
		d = newFakeCluster()
		d.self = "last"
	case "fresh":
		d = newFakeDaemon(fsm.NodeID(args[1]))
	default:
		ts.Fatalf("no such daemon: %s", args[0])
	}
	now := time.Now()
	d.happen(web.Event{Time: now.Add(-2 * time.Hour), Kind: web.EventJoin, Node: "lb2", Text: "lb2 joined"})
	d.happen(web.Event{Time: now.Add(-time.Minute), Kind: web.EventFailover, Node: "lb1", Instance: "default", Text: "lb1 is master of default"})
	stop, err := serveFake(ts.Getenv("PONTOON_SOCKET"), d, web.Access{Level: web.AccessFull})
	ts.Check(err)
	ts.Defer(stop)
}

// scriptMute serves something on PONTOON_SOCKET that is no Pontoon daemon.
func scriptMute(ts *testscript.TestScript, _ bool, _ []string) {
	stop, err := serve("unix", ts.Getenv("PONTOON_SOCKET"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "hello", http.StatusTeapot)
	}))
	ts.Check(err)
	ts.Defer(stop)
}

func serveFake(socket string, d *fakeDaemon, access web.Access) (stop func(), err error) {
	h, err := web.NewHandler(web.Config{Backend: d, Ops: d, Access: access, Version: "test"})
	if err != nil {
		return nil, err
	}
	return serve("unix", socket, h)
}

func serve(network, address string, h http.Handler) (stop func(), err error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // says only that it was closed
	}()
	return func() {
		_ = server.Close()
		<-done
		_ = os.Remove(address)
	}, nil
}

// scriptExitCode runs a command and wants this exit status of it.
func scriptExitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N COMMAND ...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d (%v), want %s", got, err, args[0])
	}
}

// scriptLastLine wants this last line of the last command's standard output.
func scriptLastLine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: lastline TEXT")
	}
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\n"), "\n")
	if got := lines[len(lines)-1]; got != args[0] {
		ts.Fatalf("last line is %q, want %q", got, args[0])
	}
}

// scriptOneLineStderr wants exactly one line on the last command's standard
// error.
func scriptOneLineStderr(ts *testscript.TestScript, neg bool, args []string) {
	if got := strings.Count(ts.ReadFile("stderr"), "\n"); neg || len(args) > 0 || got != 1 {
		ts.Fatalf("%d lines on standard error, want 1", got)
	}
}
