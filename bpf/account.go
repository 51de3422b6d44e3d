package bpf

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ids is how many numbers services and endpoints can have, 0 included.
const ids = 1 << 16

// accounts is the map active in shared memory: under 0 the connections in the flow table, under an
// endpoint's id those of it that are not closed. The programs add and subtract there too, so
// whoever writes a forward half into the flow table, or takes one out, says so here. Methods may be
// called concurrently.
type accounts struct {
	mu      sync.RWMutex // held by readers against unmapping
	memory  []byte
	counts  []uint64
	changes atomic.Uint64 // made here, not by programs

	off map[int]int64 // differences the last sweep found, by index
	log *slog.Logger
}

// open maps the memory.
func (a *accounts) open(m *ebpf.Map, log *slog.Logger) error {
	entries := int(m.MaxEntries())
	memory, err := unix.Mmap(m.FD(), 0, 8*entries, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the connection counts: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.memory, a.log = memory, log
	a.counts = unsafe.Slice((*uint64)(unsafe.Pointer(&memory[0])), entries)
	return nil
}

// close unmaps the memory. Counts read as 0 from then on.
func (a *accounts) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	memory := a.memory
	a.memory, a.counts = nil, nil
	if memory == nil {
		return nil
	}
	if err := unix.Munmap(memory); err != nil {
		return fmt.Errorf("unmap the connection counts: %w", err)
	}
	return nil
}

func (a *accounts) add(index uint16, change int64) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if int(index) < len(a.counts) {
		atomic.AddUint64(&a.counts[index], uint64(change))
		a.changes.Add(1)
	}
}

func (a *accounts) get(index uint16) uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if int(index) >= len(a.counts) {
		return 0
	}
	return atomic.LoadUint64(&a.counts[index])
}

// read copies all counts, one for each number an endpoint can have.
func (a *accounts) read() []uint64 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	copied := make([]uint64, ids)
	for i := range a.counts {
		copied[i] = atomic.LoadUint64(&a.counts[i])
	}
	return copied
}

// open tells whether the connection counts as one of its endpoint's.
func (f *pontoonFlow) open() bool { return FlowState(f.State) != StateClosed && f.Endpoint != 0 }

// came counts the forward half f that was not in the flow table before.
func (a *accounts) came(f *pontoonFlow) {
	a.add(0, 1)
	if f.open() {
		a.add(f.Endpoint, 1)
	}
}

// went counts off the forward half f, as it was when it was taken out.
func (a *accounts) went(f *pontoonFlow) {
	a.add(0, -1)
	if f.open() {
		a.add(f.Endpoint, -1)
	}
}

// turned counts that was has been written over by is.
func (a *accounts) turned(was, is *pontoonFlow) {
	a.went(was)
	a.came(is)
}

// census is what the flow table itself says of the counts.
type census []uint64

func (c census) count(f *pontoonFlow) {
	if f.reply() {
		return
	}
	c[0]++
	if f.open() {
		c[f.Endpoint]++
	}
}

// recount sets the counts to what is in the flow table: it was adopted, and whoever counted before
// may have been killed between a deletion and its account, or have counted nothing at all.
func (a *accounts) recount(ctx context.Context, m *ebpf.Map) (census, error) {
	before, found := a.read(), make(census, ids)
	for part, err := range dump(ctx, m) {
		if err != nil {
			return nil, fmt.Errorf("count connections: %w", err)
		}
		for i := range part.values {
			found.count(&part.values[i])
		}
	}
	for index, n := range found {
		if change := int64(n - before[index]); change != 0 {
			a.add(uint16(index), change)
		}
	}
	return found, nil
}

// audit compares the counts, as they were before and after a look at the whole table, with what was
// found there. Packets and records change both meanwhile: busy is how many changes there were. A
// difference within that proves nothing, and only one that two looks in a row find is mended, by
// the smaller of the two.
func (a *accounts) audit(before []uint64, found census, busy uint64) {
	off := map[int]int64{}
	mended, sum := 0, int64(0)
	for index, n := range found {
		difference := beyond(n, before[index], a.get(uint16(index)), busy)
		if difference == 0 {
			continue
		}
		off[index] = difference
		if mend := smaller(difference, a.off[index]); mend != 0 {
			a.add(uint16(index), mend)
			delete(off, index)
			mended, sum = mended+1, sum+max(mend, -mend)
		}
	}
	a.off = off
	if mended > 0 {
		a.log.Warn("counts of connections mended", "counts", mended, "by", sum)
	}
}

// beyond is how far n is from what was counted when the look began and when it ended, beyond what
// may have come and gone meanwhile.
func beyond(n, before, after, busy uint64) int64 {
	low, high := int64(min(before, after)), int64(max(before, after))
	slack := high - low + int64(busy)
	switch at := int64(n); {
	case at < low-slack:
		return at - low + slack
	case at > high+slack:
		return at - high - slack
	}
	return 0
}

// smaller returns the one of two differences that is nearer to zero; 0 when they point apart.
func smaller(a, b int64) int64 {
	switch {
	case a > 0 && b > 0:
		return min(a, b)
	case a < 0 && b < 0:
		return max(a, b)
	}
	return 0
}
