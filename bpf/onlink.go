package bpf

import "github.com/cilium/ebpf"

// linkProbes is at how many places of a table by interface an entry may stand. The places are found by the low bits of
// the interface's number, so that packets need no hash; see c/onlink.h.
const linkProbes = uint32(pontoonOnLinkLINK_PROBES)

// putOnLink writes the entry of an interface into such a table. of says whose an entry is, and whether it says
// anything. One that says nothing stays in its place until another interface needs it: packets look no further than
// the first place that nobody ever had. When all places are taken by others the first of them gives way.
func putOnLink[V any](m *ebpf.Map, v V, of func(V) (ifindex uint32, used bool)) error {
	ifindex, used := of(v)
	size := m.MaxEntries()
	place, free := ifindex%size, false
	for i := range linkProbes {
		at := (ifindex + i) % size
		var there V
		if err := m.Lookup(at, &there); err != nil {
			return err
		}
		whose, taken := of(there)
		if whose == ifindex {
			return m.Put(at, v)
		}
		if !taken && !free {
			place, free = at, true
		}
		if whose == 0 {
			break
		}
	}
	if !used {
		return nil // and it had none
	}
	return m.Put(place, v)
}
