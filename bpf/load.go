package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	mapFolder     = "maps"
	linkFolder    = "links"
	programFolder = "programs"
)

// preparePinDir makes the folders for pins, and explains what is missing.
func preparePinDir(dir string) error {
	parent := filepath.Dir(filepath.Clean(dir))
	var stat unix.Statfs_t
	if err := unix.Statfs(parent, &stat); err != nil {
		return fmt.Errorf("look at %s: %w", parent, err)
	}
	if int64(stat.Type) != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not a BPF file system; mount one: mount -t bpf bpf %s", parent, parent)
	}
	for _, folder := range []string{mapFolder, linkFolder, programFolder} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			return fmt.Errorf("make pin folder: %w", err)
		}
	}
	return nil
}

// raiseMemlock lifts the limit that kernels before 5.11 charge maps to. Later ones do not need
// it, and a process that may not raise it must not fail for that.
func raiseMemlock() {
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited)
}

// transient are the maps that hold nothing beyond a packet or a session; each load makes its own.
var transient = map[string]bool{
	pontoonMapBindings:    true,
	pontoonMapSearches:    true,
	pontoonMapChunks:      true,
	pontoonMapClocks:      true,
	pontoonMapFinds:       true,
	pontoonMapScratch:     true,
	pontoonMapTails:       true,
	pontoonMapTraceBuffer: true,
	pontoonMapTraces:      true,
	pontoonMapWorkspaces:  true,
	pontoonMapXdpTails:    true,
}

// sizes writes the wanted sizes of maps into spec and asks for pinning by name.
func sizes(spec *ebpf.CollectionSpec, opts Options) {
	spec.Maps[pontoonMapFlows].MaxEntries = 2 * opts.MaxFlows
	spec.Maps[pontoonMapHalfOpen].MaxEntries = halfBuckets(opts.MaxHalfOpen)
	spec.Maps[pontoonMapEvents].MaxEntries = opts.EventsBytes
	for name, m := range spec.Maps {
		if !transient[name] && !strings.HasPrefix(name, ".") {
			m.Pinning = ebpf.PinByName
		}
	}
}

// configure writes settings into spec and leaves in it what is to be loaded. The sizes are those
// of the maps as they are.
func configure(spec *ebpf.CollectionSpec, opts Options, hz uint64) error {
	delete(spec.Programs, pontoonProgPontoonClock)
	delete(spec.Programs, pontoonProgPontoonFind)
	for _, name := range opts.without {
		delete(spec.Programs, name)
	}
	delete(spec.Maps, pontoonMapClocks)
	delete(spec.Maps, pontoonMapFinds)
	settings := map[string]any{
		pontoonVarCfgSlot:        opts.Slot,
		pontoonVarCfgHz:          uint32(hz),
		pontoonVarCfgHalfBuckets: spec.Maps[pontoonMapHalfOpen].MaxEntries,
		pontoonVarCfgMaxFlows:    spec.Maps[pontoonMapFlows].MaxEntries / 2,
		pontoonVarCfgNextHopTtl:  uint32(hz * uint64(opts.nextHopLife/time.Second)),
		pontoonVarCfgXdpMax:      opts.XDPMax,
		pontoonVarCfgXdpFrags:    xdpFrags(spec, opts.Hook),
	}
	for name, value := range settings {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// adoptSizes compares every map of spec with what is pinned in dir. A map that was made with
// another size keeps it: the flows in it are worth more than the number. Any other difference is
// an error that names it, but for half-open connections, which last seconds. The result says whether the flow table was there.
func adoptSizes(spec *ebpf.CollectionSpec, dir string, log *slog.Logger) (bool, error) {
	names := make([]string, 0, len(spec.Maps))
	for name := range spec.Maps {
		names = append(names, name)
	}
	sort.Strings(names)
	adopted := false
	var outdated []string
	var errs []error
	for _, name := range names {
		m := spec.Maps[name]
		if m.Pinning != ebpf.PinByName {
			continue
		}
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		if err := sameLayout(m, pinned); err != nil && name == pontoonMapHalfOpen {
			log.Warn("half-open connections are not taken over: their clients will ask again", "reason", err)
			outdated = append(outdated, filepath.Join(dir, name))
			_ = pinned.Close()
			continue
		} else if err != nil {
			errs = append(errs, fmt.Errorf("pinned map %s: %w", name, err))
		}
		if m.MaxEntries != pinned.MaxEntries() {
			log.Warn("pinned map keeps its size", "map", name, "entries", pinned.MaxEntries(), "wanted", m.MaxEntries)
			m.MaxEntries = pinned.MaxEntries()
		}
		adopted = adopted || name == pontoonMapFlows
		_ = pinned.Close()
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New("made by another version; leave the cluster on this node or remove the pins to start afresh"))
	}
	if len(errs) > 0 {
		return adopted, errors.Join(errs...)
	}
	for _, pin := range outdated {
		if err := os.Remove(pin); err != nil {
			return adopted, fmt.Errorf("remove a map of another layout: %w", err)
		}
	}
	return adopted, nil
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
