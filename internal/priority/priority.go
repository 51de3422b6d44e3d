// Package priority gives a whole process its place among the others on a machine. The nice value is a matter of
// each thread on Linux (setpriority(2), "C library/kernel differences"), and a Go program has several before main
// begins; the kernel may also weigh whole sessions against each other (sched(7), "The autogroup feature"), and a
// thread's value counts only within its session then. Both are set. It starts nothing, so nobody inherits the place.
package priority

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Min and Max are the bounds of a nice value: the first has the most processor time, the last the least.
const (
	Min = -20
	Max = 19
)

const (
	threadDir     = "/proc/self/task"
	autogroupFile = "/proc/self/autogroup"
)

// maxPasses is how often the threads are listed at most. Two passes are usual; each further one needs a thread that was
// made, while the former ran, by one that had not had its turn.
const maxPasses = 100

// Set gives nice to every thread of this process and, through them, to those made later: a thread begins with the value of
// the one that made it. If the process leads its session, as one that a service manager started does, the session's group gets the same; one
// that was started from a terminal leaves alone what it shares with others. Setting less than what the process has needs CAP_SYS_NICE or
// a fitting RLIMIT_NICE; without it the error is a wrapped [os.ErrPermission] and nothing depends on what was
// reached before. Set may be called at any time, by one goroutine.
func Set(nice int) error {
	if nice < Min || nice > Max {
		return fmt.Errorf("set nice value %d: want %d to %d", nice, Min, Max)
	}
	if err := settle(listThreads, func(tid int) (bool, error) { return setThread(tid, nice) }); err != nil {
		return fmt.Errorf("set nice value %d: %w", nice, err)
	}
	if err := setAutogroup(nice); err != nil {
		return fmt.Errorf("set nice value %d of the session: %w", nice, err)
	}
	return nil
}

// settle has set called for every thread until a whole pass finds nothing to change. One that set has not met by then was made by one
// that it has, since a pass lists every thread that was there when it began.
func settle(list func() ([]int, error), set func(tid int) (changed bool, err error)) error {
	for range maxPasses {
		threads, err := list()
		if err != nil {
			return err
		}
		settled := true
		for _, tid := range threads {
			changed, err := set(tid)
			if err != nil {
				return err
			}
			settled = settled && !changed
		}
		if settled {
			return nil
		}
	}
	return errors.New("threads keep appearing with another value")
}

func listThreads() ([]int, error) {
	dir, err := os.Open(threadDir)
	if err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	threads := make([]int, 0, len(names))
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil {
			threads = append(threads, tid)
		}
	}
	return threads, nil
}

// setThread sets the value of one thread and tells whether it had another. One that has ended has none.
func setThread(tid, nice int) (changed bool, err error) {
	is, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err == nil && 20-is == nice { // the system call's answer is 20 less the nice value, getpriority(2)
		return false, nil
	}
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
	}
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("thread %d: %w", tid, err)
	}
	return true, nil
}

// setAutogroup sets the value of this session's group, where there is such a thing and it is ours.
func setAutogroup(nice int) error {
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
		return nil
	}
	file, err := os.OpenFile(autogroupFile, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without CONFIG_SCHED_AUTOGROUP
	}
	if err != nil {
		return err
	}
	_, err = file.WriteString(strconv.Itoa(nice))
	return errors.Join(err, file.Close())
}
