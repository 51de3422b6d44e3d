package bpf

import (
	"fmt"
	"os"
	"path/filepath"
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
	pontoonMapArrivals:    true,
	pontoonMapBindings:    true,
	pontoonMapSearches:    true,
	pontoonMapChunks:      true,
	pontoonMapClocks:      true,
	pontoonMapFinds:       true,
	pontoonMapFormer:      true,
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
		pontoonVarCfgBringMax:    opts.bringMax,
		pontoonVarCfgXdpFrags:    xdpFrags(spec, opts.Hook),
	}
	for name, value := range settings {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
