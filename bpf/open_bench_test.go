package bpf

import (
	"log/slog"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"golang.org/x/sys/unix"
)

// BenchmarkOpen is the data plane's part of a daemon's start, on two network cards, in a namespace of its own: with nothing
// there (first) and with what an earlier life has left (adopted). Beside the time that passes it tells the processor time
// of the process, in user space and in the kernel, most of which is the verifier's.
func BenchmarkOpen(b *testing.B) {
	for _, hook := range []string{HookTC, HookXDP} {
		for _, adopted := range []bool{false, true} {
			name := hook + "/first"
			if adopted {
				name = hook + "/adopted"
			}
			b.Run(name, func(b *testing.B) { benchOpen(b, hook, adopted) })
		}
	}
}

func benchOpen(b *testing.B, hook string, adopted bool) {
	bpftest.RequirePrivilege(b)
	ns, peer := bpftest.NewNS(b), bpftest.NewNS(b)
	for _, name := range []string{"eth1", "eth2"} {
		near, far := bpftest.Veth(ns, name, peer, name)
		near.ForXDP()
		far.ForXDP()
	}
	opts := Options{
		PinDir: bpftest.PinDir(b), Interfaces: []string{"eth1", "eth2"}, Hook: hook, MaxFlows: 65536,
		Logger: slog.New(slog.DiscardHandler),
	}
	var user, system, wall []time.Duration
	for b.Loop() {
		if !adopted {
			var err error
			ns.Do(func() { err = Remove(opts.PinDir, opts.Interfaces) })
			if err != nil {
				b.Fatal(err)
			}
		}
		before, start := usage(b), time.Now()
		d := mustOpen(b, ns, opts)
		after := usage(b)
		wall = append(wall, time.Since(start))
		user = append(user, time.Duration(after.Utime.Nano()-before.Utime.Nano()))
		system = append(system, time.Duration(after.Stime.Nano()-before.Stime.Nano()))
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
	for unit, of := range map[string][]time.Duration{"user-ms": user, "system-ms": system, "wall-ms": wall} {
		b.ReportMetric(median(of)/1e6, unit)
	}
	b.ReportMetric(0, "ns/op")
}

func mustOpen(b *testing.B, ns *bpftest.NS, opts Options) *Dataplane {
	b.Helper()
	var d *Dataplane
	var err error
	ns.Do(func() { d, err = Open(opts) })
	if err != nil {
		b.Fatal(err)
	}
	return d
}

func usage(b *testing.B) unix.Rusage {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u
}
