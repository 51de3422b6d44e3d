package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"pontoon/internal/roottest"
)

func TestEveryThreadOfTheDaemonHasItsPriority(t *testing.T) {
	roottest.Need(t)
	p := buildProduct(t)
	own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct {
		args []string
		want int
	}{
		{nil, -10},
		{[]string{"--nice", "-4"}, -4},
		{[]string{"--nice", "0"}, 20 - own},
	} {
		t.Run(strings.Join(one.args, " "), func(t *testing.T) {
			socket := filepath.Join(p.tmp, "notify.sock")
			notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = notify.Close()
				_ = os.Remove(socket)
			})
			run := p.command(t, append([]string{
				"run", "--name", "w1", "--role", "witness", "--address", "127.0.0.1:7400", "--api-listen", "none",
				"--data-dir", filepath.Join(p.tmp, "data"), "--run-dir", p.tmp,
			}, one.args...)...)
			run.Env = append(run.Env, "NOTIFY_SOCKET="+socket)
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			awaitMessage(t, notify, "READY=1")
			nices := threadNices(t, run.Process.Pid)
			if err := run.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := run.Wait(); err != nil {
				t.Errorf("the daemon ended with %v", err)
			}
			if len(nices) < 3 {
				t.Errorf("%d threads", len(nices))
			}
			for tid, nice := range nices {
				if nice != one.want {
					t.Errorf("thread %s has %d, want %d", tid, nice, one.want)
				}
			}
		})
	}
}

// threadNices reads the nice value of every thread, field 19 of its stat, proc(5).
func threadNices(t *testing.T, pid int) map[string]int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		text := string(raw)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // begin with field 3
		nice, err := strconv.Atoi(fields[19-3])
		if err != nil {
			t.Fatalf("%s: %q", file, text)
		}
		out[filepath.Base(filepath.Dir(file))] = nice
	}
	return out
}
