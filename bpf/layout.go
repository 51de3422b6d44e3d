package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// layoutVersion says what the bytes in the pinned maps mean. It is raised when that changes while
// the sizes of keys and values stay, which are compared anyway.
const layoutVersion uint32 = 1

// layoutMap is the pinned map that holds the version of those beside it. Maps without one are of
// version 1, which is older than the idea.
const layoutMap = "layout"

// ErrLayout says that pinned maps were made by a version whose entries this one cannot read, nor
// convert. Nothing was touched.
var ErrLayout = errors.New("pinned maps of another layout")

// layoutAdvice is what an operator can do about ErrLayout.
const layoutAdvice = "the earlier version goes on forwarding as it is; to change over, drain this node " +
	"(pontoon node drain) with the earlier version running, then start this one with --discard-flows"

// checkLayout compares every map of spec with what is pinned in dir and reports all that differs,
// as one ErrLayout. Sizes of tables are not part of it, nor are half-open connections, which last
// seconds. It changes nothing.
func checkLayout(spec *ebpf.CollectionSpec, dir string) error {
	names := []string{formerPin}
	for name, m := range spec.Maps {
		if m.Pinning == ebpf.PinByName {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var errs []error
	if have, err := pinnedLayout(dir); err != nil {
		return err
	} else if have != layoutVersion {
		errs = append(errs, fmt.Errorf("they have version %d, this program reads %d", have, layoutVersion))
	}
	for _, name := range names {
		pinned, err := openPinned(dir, name)
		if err != nil {
			return err
		}
		if pinned == nil {
			continue
		}
		if name == pontoonMapHalfOpen {
			_ = pinned.Close()
			continue
		}
		want := spec.Maps[name]
		if name == formerPin {
			want = spec.Maps[pontoonMapFlows]
		}
		if err := sameLayout(want, pinned); err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", name, err))
		}
		_ = pinned.Close()
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w; %s", ErrLayout, errors.Join(errs...), layoutAdvice)
}

// openPinned opens a pinned map; nil when it is not there.
func openPinned(dir, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	return m, nil
}

// sameLayout compares what decides how bytes in the map are read.
func sameLayout(want *ebpf.MapSpec, have *ebpf.Map) error {
	switch {
	case want.Type != have.Type():
		return fmt.Errorf("type is %s, need %s", have.Type(), want.Type)
	case want.KeySize != have.KeySize():
		return fmt.Errorf("key size is %d, need %d", have.KeySize(), want.KeySize)
	case want.ValueSize != have.ValueSize():
		return fmt.Errorf("value size is %d, need %d", have.ValueSize(), want.ValueSize)
	case want.Flags != have.Flags():
		return fmt.Errorf("flags are %#x, need %#x", have.Flags(), want.Flags)
	}
	return nil
}

// dropHalfOpen unpins half-open connections of another layout.
func (d *Dataplane) dropHalfOpen(spec *ebpf.CollectionSpec) error {
	pinned, err := openPinned(d.mapDir(), pontoonMapHalfOpen)
	if err != nil || pinned == nil {
		return err
	}
	defer pinned.Close()
	why := sameLayout(spec.Maps[pontoonMapHalfOpen], pinned)
	if why == nil {
		return nil
	}
	d.log.Warn("half-open connections are not taken over: their clients will ask again", "reason", why)
	if err := os.Remove(filepath.Join(d.mapDir(), pontoonMapHalfOpen)); err != nil {
		return fmt.Errorf("remove a map of another layout: %w", err)
	}
	return nil
}

// pinnedLayout reads the version of the maps in dir.
func pinnedLayout(dir string) (uint32, error) {
	m, err := openPinned(dir, layoutMap)
	if err != nil {
		return 0, err
	}
	if m == nil {
		return 1, nil
	}
	defer m.Close()
	var version uint32
	if err := m.Lookup(uint32(0), &version); err != nil {
		return 0, fmt.Errorf("read version of pinned maps: %w", err)
	}
	return version, nil
}

// writeLayout notes the version of the maps in dir.
func writeLayout(dir string) error {
	m, err := openPinned(dir, layoutMap)
	if err != nil {
		return err
	}
	if m == nil {
		spec := &ebpf.MapSpec{Name: layoutMap, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
		if m, err = ebpf.NewMap(spec); err != nil {
			return fmt.Errorf("make map %s: %w", layoutMap, err)
		}
	}
	defer m.Close()
	if err := m.Put(uint32(0), layoutVersion); err != nil {
		return fmt.Errorf("write version of pinned maps: %w", err)
	}
	if m.IsPinned() {
		return nil
	}
	if err := m.Pin(filepath.Join(dir, layoutMap)); err != nil {
		return fmt.Errorf("pin map %s: %w", layoutMap, err)
	}
	return nil
}
