package bpf

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// finder looks up many flows with one system call: a program does it for user space, in memory
// that both share. One by one a lookup costs several times what the table itself takes, and the
// batch calls of the kernel answer no questions, they list. Methods may be called concurrently.
type finder struct {
	mu      sync.Mutex
	program *ebpf.Program
	asked   *ebpf.Map
	memory  []byte
	entries []pontoonFind
}

// finderSpec takes out of spec what newFinder loads.
func finderSpec(spec *ebpf.CollectionSpec) *ebpf.CollectionSpec {
	return &ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{
			pontoonMapFinds: spec.Maps[pontoonMapFinds].Copy(),
			pontoonMapFlows: spec.Maps[pontoonMapFlows].Copy(),
		},
		Programs:  map[string]*ebpf.ProgramSpec{pontoonProgPontoonFind: spec.Programs[pontoonProgPontoonFind].Copy()},
		Types:     spec.Types,
		ByteOrder: spec.ByteOrder,
	}
}

// newFinder loads the program for the given flow table.
func newFinder(spec *ebpf.CollectionSpec, flows *ebpf.Map) (*finder, error) {
	spec.Maps[pontoonMapFlows].MaxEntries = flows.MaxEntries()
	var objects struct {
		Program *ebpf.Program `ebpf:"pontoon_find"`
		Asked   *ebpf.Map     `ebpf:"finds"`
	}
	options := ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{pontoonMapFlows: flows}}
	if err := spec.LoadAndAssign(&objects, &options); err != nil {
		return nil, fmt.Errorf("load lookup program: %w", err)
	}
	f := &finder{program: objects.Program, asked: objects.Asked}
	if err := f.share(); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// share maps the memory in which questions and answers stand.
func (f *finder) share() error {
	entries := int(f.asked.MaxEntries())
	memory, err := unix.Mmap(f.asked.FD(), 0, entries*int(unsafe.Sizeof(pontoonFind{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the questions of the lookup program: %w", err)
	}
	f.memory, f.entries = memory, unsafe.Slice((*pontoonFind)(unsafe.Pointer(&memory[0])), entries)
	return nil
}

// close may not run beside find.
func (f *finder) close() error {
	if f == nil {
		return nil
	}
	errs := []error{f.program.Close(), f.asked.Close()}
	if f.memory != nil {
		errs = append(errs, unix.Munmap(f.memory))
		f.memory, f.entries = nil, nil
	}
	return errors.Join(errs...)
}

// find looks up all keys and calls answer for each in order, with nil for one that is not in the
// table. What answer gets is valid until it returns; it must not call find.
func (f *finder) find(keys []pontoonFlowKey, answer func(i int, found *pontoonFlow)) error {
	return f.ask(pontoonFindWhatFIND_LOOK, keys, nil, answer)
}

// findOrPut is find for at most as many keys as there are entries, where the connections that halves
// are given of are put in unless one of their tuples is taken. halves has one for each key, nil: look only. The forward
// half comes first, the reply half, if there is one, right after it. put says that the connection is in the table now.
func (f *finder) findOrPut(keys []pontoonFlowKey, halves []*pontoonFlow, answer func(i int, found *pontoonFlow, put bool)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range keys {
		e := &f.entries[i]
		e.Key, e.Found = keys[i], 0
		switch h := halves[i]; {
		case h == nil:
			e.Wanted = uint32(pontoonFindWhatFIND_LOOK)
		case h.reply():
			e.Wanted, e.Value = uint32(pontoonFindWhatFIND_PUT_REPLY), *h
		default:
			e.Wanted, e.Value = uint32(pontoonFindWhatFIND_PUT), *h
		}
	}
	if len(keys) < len(f.entries) {
		f.entries[len(keys)].Wanted = uint32(pontoonFindWhatFIND_END)
	}
	if _, err := f.program.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("look up flows: %w", err)
	}
	for i := range keys {
		switch e := &f.entries[i]; pontoonFoundWhat(e.Found) {
		case pontoonFoundWhatFOUND_ROOM:
			answer(i, nil, true)
		case pontoonFoundWhatFOUND_FLOW:
			answer(i, &e.Value, false)
		default:
			answer(i, nil, false)
		}
	}
	return nil
}

// louden is find for halves of which the other nodes have not been told; from now on they are.
func (f *finder) louden(keys []pontoonFlowKey, answer func(i int, found *pontoonFlow)) error {
	return f.ask(pontoonFindWhatFIND_LOUDEN, keys, nil, answer)
}

// stamp notes when halves were last seen, of those that are there and have not been seen since. Nothing
// else of them changes: writing over an entry would undo what packets do to it meanwhile.
func (f *finder) stamp(keys []pontoonFlowKey, stamps []uint32) error {
	return f.ask(pontoonFindWhatFIND_STAMP, keys, stamps, func(int, *pontoonFlow) {})
}

func (f *finder) ask(what pontoonFindWhat, keys []pontoonFlowKey, stamps []uint32, answer func(i int, found *pontoonFlow)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for base := 0; base < len(keys); base += len(f.entries) {
		part := keys[base:min(base+len(f.entries), len(keys))]
		for i := range part {
			f.entries[i].Key, f.entries[i].Wanted, f.entries[i].Found = part[i], uint32(what), 0
			if stamps != nil {
				f.entries[i].Value.LastSeen = stamps[base+i]
			}
		}
		if len(part) < len(f.entries) {
			f.entries[len(part)].Wanted = uint32(pontoonFindWhatFIND_END)
		}
		if _, err := f.program.Run(&ebpf.RunOptions{}); err != nil {
			return fmt.Errorf("look up flows: %w", err)
		}
		for i := range part {
			if e := &f.entries[i]; e.Found != 0 {
				answer(base+i, &e.Value)
			} else {
				answer(base+i, nil)
			}
		}
	}
	return nil
}
