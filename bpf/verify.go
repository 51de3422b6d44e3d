package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The kernel looks through programs one by one for whoever asks, and through those that are asked for at the same time on as many
// processors. So they are not loaded as one collection.

// verifiers is how many programs are looked through at the same time at most; each takes some tens of megabytes of the
// kernel's memory meanwhile.
const verifiers = 4

// ordinary is the system call's answer for a nice value of 0, getpriority(2); more than that is before others.
const ordinary = 20

// makeOwnMaps makes those maps of spec that are not given: what belongs to the programs alone, their constants among it.
func makeOwnMaps(spec *ebpf.CollectionSpec, given map[string]*ebpf.Map) (*ebpf.Collection, error) {
	only := spec.Copy()
	only.Programs = nil
	for name := range given {
		delete(only.Maps, name)
	}
	return ebpf.NewCollection(only)
}

// verifyAll loads programs on maps that are found by their name. With an error there are none.
func verifyAll(specs map[string]*ebpf.ProgramSpec, mapOf func(name string) *ebpf.Map) (map[string]*ebpf.Program, error) {
	var group errgroup.Group
	group.SetLimit(min(runtime.GOMAXPROCS(0), verifiers))
	var mu sync.Mutex
	loaded := map[string]*ebpf.Program{}
	for name, spec := range specs {
		group.Go(func() error {
			yield()
			p, err := verify(spec, mapOf)
			if err != nil {
				return fmt.Errorf("program %s: %w", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			loaded[name] = p
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		closePrograms(loaded)
		return nil, err
	}
	return loaded, nil
}

// yield gives the rest of this goroutine's life a thread of ordinary priority, which ends with the goroutine: the kernel may work for a
// second on what it is given, and a daemon that was put before others on its machine must not use that against
// its own timers, and those of others like it.
func yield() {
	runtime.LockOSThread() // never unlocked: the thread is not used again
	tid := unix.Gettid()
	if is, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && is > ordinary {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, 0) // less is granted to everybody
	}
}

func verify(spec *ebpf.ProgramSpec, mapOf func(name string) *ebpf.Map) (*ebpf.Program, error) {
	spec = spec.Copy()
	for i := range spec.Instructions {
		at := &spec.Instructions[i]
		if !at.IsLoadFromMap() || at.Reference() == "" {
			continue
		}
		m := mapOf(at.Reference())
		if m == nil {
			return nil, fmt.Errorf("there is no map %s", at.Reference())
		}
		if err := at.AssociateMap(m); err != nil {
			return nil, fmt.Errorf("map %s: %w", at.Reference(), err)
		}
	}
	return ebpf.NewProgram(spec)
}

// fillArray puts programs into an array of those that are jumped to.
func fillArray(array *ebpf.Map, with []ebpf.MapKV, loaded map[string]*ebpf.Program) error {
	var errs []error
	for _, place := range with {
		if err := array.Put(place.Key, loaded[place.Value.(string)]); err != nil {
			errs = append(errs, fmt.Errorf("put %s into its array: %w", place.Value, err))
		}
	}
	return errors.Join(errs...)
}

func closePrograms(loaded map[string]*ebpf.Program) {
	for _, p := range loaded {
		_ = p.Close() // nobody has used it
	}
}
