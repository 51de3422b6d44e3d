package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// The kernel takes more than a second to look through the programs, and what it found does not change: a set that an
// earlier process has pinned is used again if the one that would be loaded in its place is the same. What makes it so is its identity,
// which is part of the name it is pinned under.

// Suffixes of the pins of a set beside the program array of the TC hook, which has none, and that of the XDP hook.
const (
	entrySuffix    = "%entry"
	xdpEntrySuffix = "%xdpentry"
	tracesSuffix   = "%traces"
	bufferSuffix   = "%buffer"
)

// identity is the same for two sets that are loaded from the same object, with the same settings, on the same maps.
// Programs cannot be changed once they are loaded, and hold their maps: as long as a set is pinned, no other map has the number of one of them.
func identity(spec *ebpf.CollectionSpec, on map[string]*ebpf.Map, entry string, xdp bool) (string, error) {
	sum := sha256.New()
	sum.Write(_PontoonBytes)
	note := func(what ...any) { fmt.Fprintf(sum, "%#v\n", what) } // %q would make characters of numbers, and large ones all the same
	note("entry", entry, xdp)
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		note("program", name, spec.Programs[name].Flags)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		note("setting", name, spec.Variables[name].Value)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		note("map", name, spec.Maps[name].MaxEntries)
	}
	for _, table := range []map[pontoonTail]string{tailPrograms, xdpTailPrograms} {
		for _, index := range slices.Sorted(maps.Keys(table)) {
			note("tail", uint32(index), table[index])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(on)) {
		info, err := on[name].Info()
		if err != nil {
			return "", fmt.Errorf("look at map %s: %w", name, err)
		}
		id, _ := info.ID()
		note("on", name, uint32(id))
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

// pinName is where a set of that identity is pinned: several may be, while one replaces another.
func pinName(dir, unique, id string) string { return filepath.Join(dir, unique+"-"+id) }

// pinAll pins a set under p.pin. The array of the TC hook comes last, so that it is there only if all is.
func (p programs) pinAll() error {
	errs := []error{
		p.entry.Pin(p.pin + entrySuffix),
		p.traces.Pin(p.pin + tracesSuffix),
		p.buffer.Pin(p.pin + bufferSuffix),
	}
	if p.xdp != nil {
		errs = append(errs, p.xdp.Pin(p.pin+xdpEntrySuffix), p.xdpTails.Pin(p.pin+xdpSuffix))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("pin programs: %w", err)
	}
	if err := p.tails.Pin(p.pin); err != nil {
		return fmt.Errorf("pin program array: %w", err)
	}
	return nil
}

// reuse opens the set of that identity which an earlier process has pinned in dir. It tells whether there is a whole one.
func reuse(spec *ebpf.CollectionSpec, dir, id string, xdp bool) (programs, bool) {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return programs{}, false
	}
	for _, pin := range pins {
		if !strings.HasSuffix(pin.Name(), "-"+id) {
			continue
		}
		p, err := openPrograms(filepath.Join(dir, pin.Name()), xdp)
		if err == nil && p.whole(spec) {
			return p, true
		}
		_ = p.close() // they were opened a moment ago and are not used
	}
	return programs{}, false
}

// openPrograms opens a pinned set. With an error the result holds what could be opened.
func openPrograms(pin string, xdp bool) (programs, error) {
	p := programs{pin: pin}
	var errs []error
	program := func(to **ebpf.Program, suffix string) {
		var err error
		*to, err = ebpf.LoadPinnedProgram(pin+suffix, nil)
		errs = append(errs, err)
	}
	table := func(to **ebpf.Map, suffix string) {
		var err error
		*to, err = ebpf.LoadPinnedMap(pin+suffix, nil)
		errs = append(errs, err)
	}
	program(&p.entry, entrySuffix)
	table(&p.tails, "")
	table(&p.traces, tracesSuffix)
	table(&p.buffer, bufferSuffix)
	if xdp {
		program(&p.xdp, xdpEntrySuffix)
		table(&p.xdpTails, xdpSuffix)
	}
	return p, errors.Join(errs...)
}

// whole tells whether the arrays hold a program wherever spec has one: somebody may have taken one out.
func (p programs) whole(spec *ebpf.CollectionSpec) bool {
	if !holds(p.tails, contents(spec, tailPrograms)) {
		return false
	}
	return p.xdp == nil || holds(p.xdpTails, contents(spec, xdpTailPrograms))
}

func holds(array *ebpf.Map, wanted []ebpf.MapKV) bool {
	for _, w := range wanted {
		var program uint32
		if array.Lookup(w.Key, &program) != nil {
			return false
		}
	}
	return true
}
