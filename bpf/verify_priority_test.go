package bpf

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

func TestWhatVerifiesProgramsIsNotBeforeOthers(t *testing.T) {
	roottest.Need(t)
	values := make(chan [2]int, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: its value is its own
		tid := unix.Gettid()
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, -3); err != nil {
			t.Error(err)
		}
		before, _ := unix.Getpriority(unix.PRIO_PROCESS, tid)
		yield()
		after, _ := unix.Getpriority(unix.PRIO_PROCESS, tid)
		values <- [2]int{20 - before, 20 - after}
	}()
	if got := <-values; got != [2]int{-3, 0} {
		t.Errorf("nice values %v, want -3 and then 0", got)
	}
}
