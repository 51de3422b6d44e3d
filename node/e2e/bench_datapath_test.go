package e2e

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pontoon/internal/lab/benchtest"
	"pontoon/internal/roottest"
)

// BenchmarkLabDatapath compares what forwards packets on this kernel, in one
// lab and interleaved: plain routing, nftables, HAProxy and Pontoon by each of
// its hooks. It prints its tables to stdout and its progress to stderr.
//
// BENCH_ROUNDS (default 5) is how often everything is measured, BENCH_WINDOW
// (default 2.5s) for how long each time. BENCH_CONTENDERS and BENCH_WORKLOADS
// (bulk1, bulk4, conns, udp) pick some, with commas between; contenders are
// picked by the beginning of their names. "floor" is picked only by name: the
// least a program at each hook can cost.
func BenchmarkLabDatapath(b *testing.B) {
	roottest.Need(b)
	cfg := benchtest.Config{Binary: binary, Progress: os.Stderr, Rounds: 5}
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	var err error
	if v := os.Getenv("BENCH_ROUNDS"); v != "" {
		if cfg.Rounds, err = strconv.Atoi(v); err != nil {
			b.Fatal("BENCH_ROUNDS: ", err)
		}
	}
	if v := os.Getenv("BENCH_WINDOW"); v != "" {
		if cfg.Window, err = time.ParseDuration(v); err != nil {
			b.Fatal("BENCH_WINDOW: ", err)
		}
	}
	cfg.Contenders = benchtest.Contenders()
	if os.Getenv("BENCH_CONTENDERS") != "" {
		cfg.Contenders = append(cfg.Contenders, benchtest.Floors()...)
	}
	cfg.Contenders = pick(b, "BENCH_CONTENDERS", cfg.Contenders, func(c benchtest.Contender, s string) bool {
		return strings.HasPrefix(c.Name, s)
	})
	cfg.Workloads = pick(b, "BENCH_WORKLOADS", benchtest.Workloads(), func(w benchtest.Workload, s string) bool {
		return string(w) == s
	})
	for b.Loop() {
		// Interrupted by hand, it still removes the lab and prints what it has.
		ctx, stop := signal.NotifyContext(b.Context(), os.Interrupt, syscall.SIGTERM)
		report, err := benchtest.Run(ctx, cfg)
		stop()
		if report != nil {
			fmt.Println()
			if werr := report.Write(os.Stdout); werr != nil {
				b.Error(werr)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range report.Names() {
			for _, w := range cfg.Workloads {
				if rate, ok := report.Median(w, name); ok {
					b.ReportMetric(rate, strings.ReplaceAll(name, " ", "-")+"/"+string(w))
				}
			}
		}
	}
}

// pick takes those of all that one of a variable's values, which are separated
// by commas, stands for, or all when it is not set.
func pick[T any](b *testing.B, variable string, all []T, match func(T, string) bool) []T {
	b.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return all
	}
	wanted := strings.Split(v, ",")
	for _, s := range wanted {
		if !slices.ContainsFunc(all, func(t T) bool { return match(t, s) }) {
			b.Fatalf("%s: there is no %q", variable, s)
		}
	}
	return slices.DeleteFunc(all, func(t T) bool {
		return !slices.ContainsFunc(wanted, func(s string) bool { return match(t, s) })
	})
}
