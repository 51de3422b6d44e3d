// Package roottest helps tests that need root and network namespaces of their own. Product code must
// not import it.
package roottest

import (
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// Need skips a privileged test where there is no root, or fails it where PONTOON_REQUIRE_PRIV=1
// promises that there is.
func Need(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
		tb.Fatal("needs root, and PONTOON_REQUIRE_PRIV=1 forbids to skip")
	}
	tb.Skip("needs root")
}

// NeedCPUs skips a test that means nothing on fewer processors, or fails it where
// PONTOON_REQUIRE_PRIV=1 forbids to skip.
func NeedCPUs(tb testing.TB, n int) {
	tb.Helper()
	if runtime.NumCPU() >= n {
		return
	}
	if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
		tb.Fatalf("needs %d processors, and PONTOON_REQUIRE_PRIV=1 forbids to skip", n)
	}
	tb.Skipf("needs %d processors", n)
}

// Namespace moves the test onto a thread of its own in a fresh unnamed network namespace. The
// thread is never unlocked: when the test's goroutine ends the runtime throws the thread away, and
// the namespace with it, also on failure.
func Namespace(t *testing.T) netns.NsHandle {
	t.Helper()
	Need(t)
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Go runs f on another thread in the namespace, and delivers what it returns.
func Go(ns netns.NsHandle, f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return done
}

// Patient stretches a time by the factor in PONTOON_TEST_PATIENCE, for machines on which everything
// takes longer, such as those that are emulated in software.
func Patient(d time.Duration) time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("PONTOON_TEST_PATIENCE")); err == nil && factor > 1 {
		return time.Duration(factor) * d
	}
	return d
}

// Eventually polls ok until it holds, for ten seconds at most, stretched by Patient.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	limit := Patient(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("after %s still not: %s", limit, what)
		}
	}
}
