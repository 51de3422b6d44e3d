package bpf

import "github.com/cilium/ebpf"

// batchMost is how many entries one call writes at most.
const batchMost = 4096

// putAll writes entries with few calls: one by one, what takes the kernel 50 ns would take ten times as long. An
// entry that cannot be written is told to failed by its position, with its own reason, and keeps no other from being written.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V, failed func(at int, err error)) {
	for at := 0; at < len(keys); at += batchMost {
		end := min(at+batchMost, len(keys))
		if _, err := m.BatchUpdate(keys[at:end], values[at:end], nil); err == nil {
			continue
		}
		for i := at; i < end; i++ {
			if err := m.Put(keys[i], values[i]); err != nil {
				failed(i, err)
			}
		}
	}
}

// idSet is a set of ids of services or of endpoints. The zero value is empty.
type idSet [ids / 64]uint64

func (s *idSet) add(id uint32)      { s[id%ids/64] |= 1 << (id % 64) }
func (s *idSet) has(id uint32) bool { return s[id%ids/64]&(1<<(id%64)) != 0 }
