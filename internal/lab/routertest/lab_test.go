package routertest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// newLab is a lab whose nodes run nothing: what speaks on them is the test's.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	roottest.Need(t)
	l, err := lab.New(lab.Config{Topology: lab.Routed, Nodes: 3, Clients: 1, Endpoints: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.Dump(t.Output())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Each documented configuration is one its router takes.
func TestRoutersTakeWhatIsDocumented(t *testing.T) {
	l := newLab(t)
	r := l.Routers()[0]
	for _, kind := range Kinds() {
		for _, form := range Forms() {
			t.Run(string(kind)+"/"+string(form), func(t *testing.T) {
				d := Start(t, kind, r, 3, Options{Form: form, BFD: 50 * time.Millisecond})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := d.Established(ctx); err != nil {
					t.Error(err)
				}
				if paths, err := d.Paths(ctx, single(lab.RoutedVIP(0))); err != nil || len(paths) > 0 {
					t.Errorf("a router nobody speaks to has %v, %v", paths, err)
				}
				d.Stop(t)
			})
		}
	}
}

// role runs this test binary on a host, as one of its other selves.
func role(t *testing.T, start func(*exec.Cmd) (*lab.Process, error), name, env string) *lab.Process {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(out.Name()))
		}
	})
	return p
}

// speakers has each node announce a VIP of each family, with the MED and the next hops of its turn.
func speakers(t *testing.T, l *lab.Lab, med func(i int) uint32, hops ...netip.Addr) []*lab.Process {
	t.Helper()
	var out []*lab.Process
	for i, n := range l.Nodes() {
		raw, err := json.Marshal(speechOf(l.Routers()[0], i, med(i), hops...))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, role(t, n.Host.Start, n.Name(), asSpeaker+"="+string(raw)))
	}
	return out
}

func end(t *testing.T, procs []*lab.Process) {
	t.Helper()
	for _, p := range procs {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := p.Wait(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

func ranks(i int) uint32 { return 10 << i }

func alike(int) uint32 { return 10 }

// awaitHops waits until the router's kernel sends what is for the first VIP of each family to these next hops.
func awaitHops(t *testing.T, r *lab.Router, want func(f lab.Family) []netip.Addr) {
	t.Helper()
	table, err := r.RouteTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, f := range lab.Families() {
		err := lab.WaitFor(ctx, f.String()+" routes", func(context.Context) error {
			got, err := table.To(f.RoutedVIP(0))
			if err == nil && !slices.Equal(got, want(f)) {
				err = fmt.Errorf("by %v, not %v", got, want(f))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func of(nodes ...*lab.Node) func(lab.Family) []netip.Addr {
	return func(f lab.Family) (out []netip.Addr) {
		for _, n := range nodes {
			out = append(out, n.AddrIn(f))
		}
		return out
	}
}

// What three speakers announce is in each router's table and in its kernel as its form has it, in both families.
func TestRoutersForwardAsAnnounced(t *testing.T) {
	l := newLab(t)
	r := l.Routers()[0]
	nodes := l.Nodes()
	floating := []netip.Addr{lab.IPv4.NextHopVIP(), lab.IPv6.NextHopVIP()}
	for _, kind := range Kinds() {
		t.Run(string(kind)+"/backup", func(t *testing.T) {
			d := Start(t, kind, r, 3, Options{Form: Backup})
			procs := speakers(t, l, ranks)
			d.AwaitEstablished(t, nodes[0].Addr(), nodes[1].Addr(), nodes[2].Addr())
			awaitHops(t, r, of(nodes[0]))
			for _, f := range lab.Families() {
				paths := d.AwaitPaths(t, single(f.RoutedVIP(0)), "three paths", func(p []Path) bool { return len(p) == 3 })
				for i, p := range paths {
					if p.From != nodes[i].Addr() || p.NextHop != nodes[i].AddrIn(f) || p.MED != ranks(i) || p.Best != (i == 0) || p.ASPath != "64512" || p.Communities == "" {
						t.Errorf("%s path %d: %+v", f, i, p)
					}
				}
			}
			end(t, procs[:1])
			awaitHops(t, r, of(nodes[1]))
			end(t, procs[1:])
			awaitHops(t, r, of())
			d.Stop(t)
		})
		t.Run(string(kind)+"/ecmp", func(t *testing.T) {
			d := Start(t, kind, r, 3, Options{Form: ECMP})
			procs := speakers(t, l, alike)
			awaitHops(t, r, of(nodes...))
			end(t, procs[1:2])
			awaitHops(t, r, of(nodes[0], nodes[2]))
			end(t, slices.Delete(procs, 1, 2))
			d.Stop(t)
		})
		t.Run(string(kind)+"/floating", func(t *testing.T) {
			d := Start(t, kind, r, 3, Options{Form: Floating})
			procs := speakers(t, l, ranks, floating...)
			d.AwaitPaths(t, single(lab.RoutedVIP(0)), "three paths", func(p []Path) bool { return len(p) == 3 })
			hops := func(f lab.Family) []netip.Addr { return []netip.Addr{f.NextHopVIP()} }
			awaitHops(t, r, hops)
			end(t, procs[:1])
			d.AwaitPaths(t, single(lab.RoutedVIP(0)), "two paths", func(p []Path) bool { return len(p) == 2 })
			awaitHops(t, r, hops)
			end(t, procs[1:])
			d.Stop(t)
		})
	}
	t.Run("own", func(t *testing.T) {
		raw, err := json.Marshal(r.PeerConfig(0))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "router.json")
		write(t, path, string(raw))
		own := role(t, r.Start, "router", asRouter+"="+path)
		procs := speakers(t, l, alike)
		awaitHops(t, r, of(nodes...))
		end(t, procs[:1])
		awaitHops(t, r, of(nodes[1:]...))
		end(t, procs[1:])
		awaitHops(t, r, of())
		end(t, []*lab.Process{own})
	})
}
