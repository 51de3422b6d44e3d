package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"pontoon/node"
)

func loadConfig(t *testing.T, args ...string) (node.Config, error) {
	t.Helper()
	a, _, _ := testApp(nil)
	cmd := newRunCmd(a)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	var flags runFlags
	flags.config = cmd.Flags().Lookup("config").Value.String()
	return flags.load(cmd.Flags(), func() (string, error) { return "host7", nil })
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsWinOverTheFileAndTheFileOverDefaults(t *testing.T) {
	path := writeFile(t, `
name: lb1
cluster: {address: "192.168.80.11:7400"}
data_plane: {interfaces: [eth1, eth2], max_flows: 4096}
agent_grace: 3s
failover: {echo_interval: 10ms}
`)
	cfg, err := loadConfig(t, "--config", path, "--max-flows", "8192", "--interface", "eth3", "--interface", "eth4,eth5")
	if err != nil {
		t.Fatal(err)
	}
	want := node.DefaultConfig()
	want.Name = "lb1"
	want.Cluster.Address = "192.168.80.11:7400"
	want.DataPlane.Interfaces = []string{"eth3", "eth4", "eth5"}
	want.DataPlane.MaxFlows = 8192
	want.AgentGrace = 3 * time.Second
	want.Failover.EchoInterval = 10 * time.Millisecond
	assertConfig(t, cfg, want)
}

func TestEmptyFileSaysNothing(t *testing.T) {
	for _, text := range []string{"", "# nothing here\n", "cluster:\n", "failover:\n"} {
		cfg, err := loadConfig(t, "--config", writeFile(t, text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		want := node.DefaultConfig()
		want.Name = "host7"
		assertConfig(t, cfg, want)
	}
}

func assertConfig(t *testing.T, got, want node.Config) {
	t.Helper()
	a, b := pflag.NewFlagSet("", pflag.ContinueOnError), pflag.NewFlagSet("", pflag.ContinueOnError)
	bindConfig(a, &got)
	bindConfig(b, &want)
	a.VisitAll(func(f *pflag.Flag) {
		if w := b.Lookup(f.Name).Value.String(); f.Value.String() != w {
			t.Errorf("%s is %s, want %s", f.Name, f.Value, w)
		}
	})
}

func TestEveryKeyOfTheNodeFileIsAFlag(t *testing.T) {
	cfg := node.DefaultConfig()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	bindConfig(fs, &cfg)
	given := map[string]string{
		"name": "n", "role": "witness", "data-dir": "/d", "run-dir": "/r", "address": "10.0.0.1:1", "gossip-port": "2",
		"api-listen": "none", "interface": "e", "hook": "tc", "pin-dir": "/p", "max-flows": "3", "agent-grace": "4s", "log-level": "warn",
		"echo-interval": "7ms", "echo-misses": "8", "bfd-interval": "9ms", "bfd-multiplier": "10", "lease": "2s", "nice": "-3",
	}
	help := newRunCmd(&app{}).Long
	for name, value := range given {
		if err := fs.Set(name, value); err != nil {
			t.Errorf("--%s: %v", name, err)
		}
		if !strings.Contains(help, "--"+name) {
			t.Errorf("the help of run does not name --%s", name)
		}
	}
	want := node.Config{
		Name: "n", Role: "witness", DataDir: "/d", RunDir: "/r", AgentGrace: 4 * time.Second, Nice: -3, LogLevel: "warn",
		Cluster:   node.ClusterConfig{Address: "10.0.0.1:1", GossipPort: 2},
		API:       node.APIConfig{Listen: "none"},
		DataPlane: node.DataPlaneConfig{Interfaces: []string{"e"}, Hook: "tc", PinDir: "/p", MaxFlows: 3},
		Failover: node.FailoverConfig{
			EchoInterval: 7 * time.Millisecond, EchoMisses: 8, BFDInterval: 9 * time.Millisecond, BFDMultiplier: 10, Lease: 2 * time.Second,
		},
	}
	assertConfig(t, cfg, want)
	if keys := leafKeys(); len(keys) != len(given) {
		t.Errorf("%d keys and %d flags: %v", len(keys), len(given), keys)
	}
}

func TestHostNameFailureIsTold(t *testing.T) {
	var flags runFlags
	flags.config = writeFile(t, "")
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.String("config", "", "")
	if err := fs.Set("config", flags.config); err != nil {
		t.Fatal(err)
	}
	_, err := flags.load(fs, func() (string, error) { return "", errors.New("no name") })
	if err == nil || !strings.Contains(err.Error(), "give --name") {
		t.Errorf("error %v", err)
	}
}

func TestDaemonTellsTheServiceManagerAndStopsWhenAsked(t *testing.T) {
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify.sock"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = notify.Close() })
	env := map[string]string{"NOTIFY_SOCKET": notify.LocalAddr().String()}
	a, _, log := testApp(env)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- execute(ctx, a, "run", "--name", "w1", "--role", "witness", "--address", "127.0.0.1:7400", "--api-listen", "none", "--nice", "0",
			"--data-dir", filepath.Join(dir, "data"), "--run-dir", filepath.Join(dir, "run"))
	}()
	awaitMessage(t, notify, "READY=1")

	client, _, _ := testApp(nil)
	err = execute(t.Context(), client, "status", "--socket", filepath.Join(dir, "run", "pontoon.sock"))
	if err == nil || !strings.Contains(err.Error(), "this node is in no cluster") {
		t.Errorf("status of a fresh daemon: %v", err)
	}

	cancel()
	awaitMessage(t, notify, "STOPPING=1")
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the daemon ended with %v; its log:\n%s", err, log)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the daemon did not stop within 20s")
	}
}

func TestDaemonSurvivesTheReaderOfItsLog(t *testing.T) {
	p := buildProduct(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(p.tmp, "notify.sock"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = notify.Close() })
	run := p.command(t, "run", "--name", "w1", "--role", "witness", "--address", "127.0.0.1:7400", "--api-listen", "none",
		"--data-dir", filepath.Join(p.tmp, "data"), "--run-dir", p.tmp, "--log-level", "debug")
	run.Env = append(run.Env, "NOTIFY_SOCKET="+notify.LocalAddr().String())
	log, err := run.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	awaitMessage(t, notify, "READY=1")
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	// With the service manager gone too, stopping is worth a warning: it is
	// logged to nobody, and the daemon must still end in order.
	if err := notify.Close(); err != nil {
		t.Fatal(err)
	}
	if err := run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

// awaitMessage reads notifications until one of its lines is want.
func awaitMessage(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if string(buf[:n]) == want {
			return
		}
	}
}

// leafKeys lists the keys of the node file that hold a value.
func leafKeys() []string {
	var leaves []string
	for _, key := range configKeys(reflect.TypeFor[node.Config]()) {
		if !slices.Contains([]string{"cluster", "api", "data_plane", "failover"}, key) {
			leaves = append(leaves, key)
		}
	}
	return leaves
}
