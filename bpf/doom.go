package bpf

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
)

// doomer ends connections by a program that changes their halves in place: writing over an entry
// would undo what packets change in it meanwhile. Methods may be called concurrently.
type doomer struct {
	program *ebpf.Program
}

// newDoomer takes the program out of spec and loads it on the given maps.
func newDoomer(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*doomer, error) {
	only := spec.Copy()
	delete(spec.Programs, pontoonProgPontoonDoom)
	var objects struct {
		Program *ebpf.Program `ebpf:"pontoon_doom"`
	}
	if err := only.LoadAndAssign(&objects, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
		return nil, fmt.Errorf("load the program that ends flows: %w", err)
	}
	return &doomer{program: objects.Program}, nil
}

// mark makes both halves of a connection doomed and last seen at stamp, and nothing else of them.
// A connection that is gone, or another one by now, is no error.
func (d *doomer) mark(key pontoonFlowKey, forward *pontoonFlow, stamp uint32) error {
	ending := pontoonEnding{Key: key, Created: forward.Created, LastSeen: stamp, Endpoint: forward.Endpoint}
	data := unsafe.Slice((*byte)(unsafe.Pointer(&ending)), unsafe.Sizeof(ending))
	if _, err := d.program.Run(&ebpf.RunOptions{Data: data}); err != nil {
		return fmt.Errorf("end flow: %w", err)
	}
	return nil
}

// learn sets and clears flags of both halves of a connection, and says whether that changed anything. One that is
// gone, doomed, or another one by now learns nothing.
func (d *doomer) learn(l *lesson) (bool, error) {
	ending := pontoonEnding{Key: l.key, Created: l.of.Created, Endpoint: l.of.Endpoint, Learn: 1, Set: l.set, Clear: l.clear}
	data := unsafe.Slice((*byte)(unsafe.Pointer(&ending)), unsafe.Sizeof(ending))
	changed, err := d.program.Run(&ebpf.RunOptions{Data: data})
	if err != nil {
		return false, fmt.Errorf("have a flow learn: %w", err)
	}
	return changed != 0, nil
}

func (d *doomer) close() {
	if d != nil {
		_ = d.program.Close()
	}
}
