package bpf

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// entrant puts half-open connections that other nodes tell of into the half-open table, many with one
// system call: places in it are given out by programs alone, under a lock of theirs. It is loaded
// when the first such record comes, which most clusters never see. Guarded by flowMu.
type entrant struct {
	program *ebpf.Program
	asked   *ebpf.Map
	memory  []byte
	entries []pontoonArrival
}

// newEntrant loads the program for the given maps. spec is what the other programs were loaded from.
func newEntrant(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*entrant, error) {
	var objects struct {
		Program *ebpf.Program `ebpf:"pontoon_enter"`
		Asked   *ebpf.Map     `ebpf:"arrivals"`
	}
	if err := spec.Copy().LoadAndAssign(&objects, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
		return nil, fmt.Errorf("load the program for half-open flows of other nodes: %w", err)
	}
	e := &entrant{program: objects.Program, asked: objects.Asked}
	n := int(e.asked.MaxEntries())
	size, page := n*int(unsafe.Sizeof(pontoonArrival{})), unix.Getpagesize()
	memory, err := unix.Mmap(e.asked.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map what half-open flows are handed over in: %w", err), e.close())
	}
	e.memory, e.entries = memory, unsafe.Slice((*pontoonArrival)(unsafe.Pointer(&memory[0])), n)
	return e, nil
}

func (e *entrant) close() error {
	if e == nil {
		return nil
	}
	errs := []error{e.program.Close(), e.asked.Close()}
	if e.memory != nil {
		errs = append(errs, unix.Munmap(e.memory))
		e.memory, e.entries = nil, nil
	}
	return errors.Join(errs...)
}

// enter puts in the connections, at most as many as there are entries, in this order, and returns how
// many are in the table then. The others are established here, or this node has opened them itself.
func (e *entrant) enter(list []connection) (int, error) {
	for i := range list {
		c := &list[i]
		e.entries[i] = pontoonArrival{Key: c.key, Forward: c.forward, Reply: c.reply, Wanted: 1}
	}
	if len(list) < len(e.entries) {
		e.entries[len(list)].Wanted = 0
	}
	if _, err := e.program.Run(&ebpf.RunOptions{}); err != nil {
		return 0, fmt.Errorf("take in half-open flows: %w", err)
	}
	taken := 0
	for i := range list {
		taken += int(e.entries[i].Taken)
	}
	return taken, nil
}

// arrivalWindow is how many half-open connections are put in together (ARRIVALS).
const arrivalWindow = 256

// halfOpen tells a record of a connection that is not established from others.
func (r *pontoonFlowRecord) halfOpen() bool { return FlowState(r.State) < StateEstablished }

// earlyReason tells whether half-open connections are told of for such a reason: they are in no snapshot.
func earlyReason(reason uint8) bool {
	return reason == reasonNew || reason == reasonState || reason == reasonAdopt
}

// arrive takes a record of a half-open connection into the window. One too old to be waited for, or that
// comes back to its owner, is no news.
func (in *importer) arrive(r *pontoonFlowRecord) error {
	c := recordConnection(r, in.now)
	limit, _ := in.d.idle.limit(c.key.Proto, &c.forward, in.now)
	if r.OwnerSlot == in.d.opts.Slot || r.OwnerSlot == nobody || c.idle(in.now) > limit {
		in.result.Kept++
		return nil
	}
	in.arrivals = append(in.arrivals, c)
	if r.Reason != reasonNew {
		return nil
	}
	return in.d.remember(r.Client, r.Service, r.EndpointId, time.Duration(r.AgeMs)*time.Millisecond, in.now)
}

// enter puts the half-open connections of the window in. It comes after everything else in it: what was
// established meanwhile is not half-open any more, and what ended has made room.
func (in *importer) enter() error {
	if len(in.arrivals) == 0 {
		return nil
	}
	if in.d.entrant == nil {
		var err error
		if in.d.entrant, err = newEntrant(in.d.spec, in.d.byName); err != nil {
			return err
		}
	}
	taken, err := in.d.entrant.enter(in.arrivals)
	in.result.HalfOpen += taken
	in.result.Kept += len(in.arrivals) - taken
	return err
}

// established takes out of the half-open table what is in the flow table now.
func (in *importer) established(c *connection) {
	if in.d.entrant == nil { // nothing of others was ever put in
		return
	}
	in.d.half.forget(c.key, &c.forward)
	if !c.forward.oneHalf() {
		in.d.half.forget(otherKey(&c.key, &c.forward), &c.reply)
	}
}

// forget frees the place of key, if what is there does to packets what f does.
func (t *halfTable) forget(key pontoonFlowKey, f *pontoonFlow) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	b, way, tag := t.place(&key)
	if b == nil {
		return
	}
	if here := b.Slot[way].F; samePair(&key, &here, f) {
		t.free(b, way, tag)
	}
}
