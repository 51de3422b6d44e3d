package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

func TestKilledOwnerTakesItsProcessesAlong(t *testing.T) {
	roottest.Need(t)
	dir := t.TempDir()
	owner := exec.Command(standin.path(t), "owner", dir)
	owner.Stderr = t.Output()
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = owner.Process.Kill()
		t.Fatal(err, owner.Wait())
	}
	var (
		prefix string
		pid    int
	)
	if _, err := fmt.Sscan(line, &prefix, &pid); err != nil {
		t.Errorf("%q: %v", line, err)
	}
	t.Cleanup(func() { _ = Clean(dir, prefix) })
	if err := Clean(dir, prefix); err == nil || !strings.Contains(err.Error(), "still uses it") {
		t.Errorf("cleaned under a living owner: %v", err)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	if err := WaitFor(deadline(t, 5*time.Second), "the node to follow its owner", func(context.Context) error {
		// A zombie that nobody has reaped yet is dead enough.
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(raw, []byte(") Z ")) {
			return fmt.Errorf("process %d lives", pid)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if found, err := Leftovers(dir); err != nil || len(found) != 1 || found[0] != prefix {
		t.Errorf("left over: %v, %v", found, err)
	}
	if err := Clean(dir, prefix); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(nsPath(prefix) + "*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestKeptDemoGoesOnServing(t *testing.T) {
	roottest.Need(t)
	dir := t.TempDir()
	var out bytes.Buffer
	_, err := RunDemo(deadline(t, time.Minute), DemoConfig{
		Binary: standin.path(t), Dir: dir, Connections: 10, Failures: []string{}, Keep: true, Out: &out,
	})
	found, lerr := Leftovers(dir)
	if lerr != nil || len(found) != 1 {
		t.Fatalf("%v; kept %v, %v\n%s", err, found, lerr, out.String())
	}
	prefix := found[0]
	t.Cleanup(func() {
		if err := Clean(dir, prefix); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"--clean " + prefix, "/run/netns/" + prefix + "-client1", "status --watch"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("nothing said about %q in:\n%s", want, out.String())
		}
	}
	client := &Host{spec: hostSpec{name: "client1"}, ns: prefix + "-client1"}
	if err := WaitFor(deadline(t, 10*time.Second), "an endpoint to answer", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		c, err := client.Dial(ctx, formL2.target())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.0\r\nHost: web.example.net\r\n\r\n"); err != nil {
			return err
		}
		raw, err := io.ReadAll(c)
		if err == nil && !bytes.Contains(raw, []byte(" here; you come from ")) {
			err = fmt.Errorf("answered %q", raw)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestServeEndpointRefusesNonsense(t *testing.T) {
	for _, bad := range []string{"", "ep1", "ep1=", "ep1=10.2.0.21"} {
		if err := ServeEndpoint(t.Context(), bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
	if got := EndpointArgs("ep1", formL2.target()); len(got) != 3 || got[2] != "ep1=192.168.80.200:80" {
		t.Errorf("got %q", got)
	}
}
