package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// put sends one write over a node's socket and returns the index it was
// committed at.
func put(ctx context.Context, n *lab.Node, path string, body any) (uint64, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.Socket())
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://localhost"+path, bytes.NewReader(raw))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var done struct {
		Index  uint64 `json:"index"`
		Detail string `json:"detail"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&done); err != nil {
		return 0, err
	}
	if resp.StatusCode/100 != 2 {
		return 0, fmt.Errorf("%s: %s", resp.Status, done.Detail)
	}
	return done.Index, nil
}

// service is the body of a write.
func service(name string, port int) map[string]any {
	return map[string]any{
		"name": name, "vip": lab.ServiceVIP().String(), "port": port,
		"endpoints": []map[string]any{{"address": "192.168.80.21:8080", "weight": 1}},
	}
}

func TestWritesAreTakenByEveryNodeAtOnce(t *testing.T) {
	t.Parallel()
	const each = 20
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3})
	cli(t, l.Nodes()[0], "vip", "create", lab.ServiceVIP().String())
	var g errgroup.Group
	indexes := make([][]uint64, len(l.Nodes()))
	for i, n := range l.Nodes() {
		g.Go(func() error {
			for k := range each {
				name := fmt.Sprintf("%s-%d", n.Name(), k)
				index, err := put(within(t, 30*time.Second), n, "/v1/services/"+name, service(name, 1000+i*each+k))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				indexes[i] = append(indexes[i], index)
				// Who got the answer from a node reads his write there at once.
				var got json.RawMessage
				if err := get(within(t, 5*time.Second), n, "/v1/services/"+name, &got); err != nil {
					return fmt.Errorf("own write: %w", err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var all []uint64
	for _, list := range indexes {
		if !slices.IsSorted(list) {
			t.Errorf("indexes of one writer do not grow: %v", list)
		}
		all = append(all, list...)
	}
	slices.Sort(all)
	if slices.Compact(slices.Clone(all))[0] == 0 || len(slices.Compact(all)) != 3*each {
		t.Errorf("two writes were answered with one index, or one with none")
	}
	waitApplied(t, l)
	for _, n := range l.Nodes() {
		var list []struct{ Name string }
		if err := get(within(t, 5*time.Second), n, "/v1/services", &list); err != nil {
			t.Fatal(err)
		}
		if len(list) != 3*each {
			t.Errorf("%s has %d services, want %d", n.Name(), len(list), 3*each)
		}
	}
}

func TestADrainedEndpointKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: 2})
	servers := serve(t, l)
	declare(t, l, "fullnat", false)
	clients := connect(t, l, 40)
	steady(t, clients)
	drained := netip.AddrPortFrom(l.Endpoints()[0].Addr(), webPort).String()
	before := servers[0].Stats()
	if before.Open == 0 || servers[1].Stats().Open == 0 {
		t.Fatalf("both endpoints should have connections: %+v, %+v", before, servers[1].Stats())
	}

	cli(t, l.Nodes()[2], "endpoint", "drain", "web", drained)
	waitApplied(t, l)
	fresh := connect(t, l, 40)
	if after := servers[0].Stats(); after.Accepted != before.Accepted {
		t.Errorf("the drained endpoint got %d new connections", after.Accepted-before.Accepted)
	}
	late := stalls(t)
	w := clients.Window()
	progressed(t, w, restartGap, late)

	cli(t, l.Nodes()[1], "endpoint", "resume", "web", drained)
	waitApplied(t, l)
	connect(t, l, 10)
	if after := servers[0].Stats(); after.Accepted == before.Accepted {
		t.Error("the resumed endpoint gets nothing")
	}

	// A deleted service takes nobody new; what runs goes on to its own end, if that was asked for.
	t.Run("connections outlive their service", func(t *testing.T) {
		cli(t, l.Nodes()[0], "service", "update", "web", "--on-remove", "keep")
		waitApplied(t, l)
		w, wf := clients.Window(), fresh.Window()
		cli(t, l.Nodes()[0], "service", "delete", "web")
		waitApplied(t, l)
		ctx := within(t, 2*time.Second)
		if c, err := l.Clients()[0].Dial(ctx, webVIP); err == nil {
			c.Close()
			t.Error("a new connection was taken")
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new connection: %v, want it refused", err)
		}
		pass(t, 2*time.Second)
		progressed(t, w, restartGap, late)
		progressed(t, wf, restartGap, late)
	})
}

// traces lists what of a lab can be seen on this machine.
func traces(prefix, dir string) (found []string) {
	for _, pattern := range []string{"/run/netns/" + prefix + "-*", "/sys/fs/bpf/" + prefix + "-*", dir} {
		paths, _ := filepath.Glob(pattern)
		found = append(found, paths...)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if raw, err := os.ReadFile(p); err == nil && bytes.Contains(raw, []byte(dir)) {
			found = append(found, p+" "+strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	return found
}

func TestALabLeavesNothingBehind(t *testing.T) {
	roottest.Need(t)
	l, err := lab.New(lab.Config{Binary: binary, Topology: lab.TwoLeg, Nodes: 2, Clients: 1, Endpoints: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, n := range l.Nodes() {
		if err := n.Start(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := n.WaitUp(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	cli(t, l.Nodes()[0], "init")
	waitHealthyOne(t, l.Nodes()[0])
	if found := traces(l.Prefix(), l.Dir()); len(found) < 5 {
		t.Fatalf("the search for traces finds only %v", found)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if found := traces(l.Prefix(), l.Dir()); len(found) > 0 {
		t.Errorf("left behind: %v", found)
	}
}

func waitHealthyOne(t testing.TB, n *lab.Node) {
	t.Helper()
	eventually(t, 20*time.Second, n.Name()+" to be healthy", func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		return s.CheckHealthy(n.Name())
	})
}

// TestAnInterruptedDemoLeavesNothingBehind stops the product's own demo in the
// middle of its work, as Ctrl-C does.
func TestAnInterruptedDemoLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	roottest.Need(t)
	dir := t.TempDir()
	// Unix sockets live below it, so it must be short.
	tmp, err := os.MkdirTemp("", "pt-int-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	out := filepath.Join(dir, "out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(binary, "demo", "--connections", "50")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		// Should the test have failed half way: let it clean up by itself.
		_ = cmd.Process.Signal(syscall.SIGTERM)
	})
	var prefix string
	eventually(t, 60*time.Second, "the demo to be in the middle of its failures", func(context.Context) error {
		raw, err := os.ReadFile(out)
		if err != nil {
			return err
		}
		if labs, _ := filepath.Glob(filepath.Join(tmp, "pt????")); len(labs) == 1 {
			prefix = filepath.Base(labs[0])
		}
		if !bytes.Contains(raw, []byte("lost its power")) {
			return fmt.Errorf("it says %q", raw)
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-within(t, 30*time.Second).Done():
		t.Fatal("the interrupted demo does not end")
	}
	if found := traces(prefix, filepath.Join(tmp, prefix)); len(found) > 0 {
		t.Errorf("left behind: %v", found)
	}
}

// Each node is told at the same moment to add endpoints to one service: each command reads the service and writes it
// back, and nobody's endpoint is lost.
func TestChangesOfOneServiceAtOnceAreAllKept(t *testing.T) {
	l := newCluster(t, lab.Config{Nodes: 3, Clients: 1, Endpoints: 1})
	n := l.Nodes()[0]
	cli(t, n, "service", "create", "web", "--vip", lab.ServiceVIP().String(), "--port", "80", "--protocol", "tcp", "--mode", "fullnat",
		"--endpoint", "10.9.0.1:80")
	const each = 6
	var g errgroup.Group
	for i, n := range l.Nodes() {
		g.Go(func() error {
			for j := range each {
				if _, err := n.CLI(within(t, 20*time.Second), "service", "update", "web", "--add-endpoint", fmt.Sprintf("10.9.%d.%d:80", i+1, j+1)); err != nil {
					return fmt.Errorf("%s: %w", n.Name(), err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Endpoints []json.RawMessage `json:"endpoints"`
	}
	if err := get(within(t, 5*time.Second), n, "/v1/services/web", &got); err != nil {
		t.Fatal(err)
	}
	if want := 1 + each*len(l.Nodes()); len(got.Endpoints) != want {
		t.Errorf("%d endpoints are there, want %d", len(got.Endpoints), want)
	}
}
