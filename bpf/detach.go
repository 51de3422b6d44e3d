package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// detachOthers takes our programs off interfaces that are not on the list any more: an earlier
// life of this data plane, which is known by its flow table, had them there.
func (h *hooks) detachOthers(flows *ebpf.Map) error {
	errs := []error{h.detachOtherLinks()}
	info, err := flows.Info()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("look at the flow table: %w", err))...)
	}
	id, _ := info.ID()
	links, err := h.nl.LinkList()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list interfaces: %w", err))...)
	}
	for _, iface := range links {
		name := iface.Attrs().Name
		if slices.Contains(h.names, name) {
			continue
		}
		filter, err := findFilter(h.nl, iface)
		if err == nil && filter != nil && usesMap(filter, id) {
			err = removeFilter(h.nl, iface)
			h.log.Info("interface detached", "interface", name, "hook", usedClsact)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *hooks) detachOtherLinks() error {
	pins, err := os.ReadDir(h.dir)
	if err != nil {
		return fmt.Errorf("list pinned links: %w", err)
	}
	var errs []error
	for _, pin := range pins {
		path := filepath.Join(h.dir, pin.Name())
		if slices.ContainsFunc(h.names, func(name string) bool { return h.pin(name) == path || h.xdpPin(name) == path }) {
			continue
		}
		name, xdp := strings.CutSuffix(pin.Name(), xdpSuffix)
		h.log.Info("interface detached", "interface", name, "hook", map[bool]string{true: HookXDP, false: usedTCX}[xdp])
		errs = append(errs, detachLink(path), removeLink(path))
	}
	return errors.Join(errs...)
}

// usesMap says whether the program of the filter works on the map.
func usesMap(filter netlink.Filter, id ebpf.MapID) bool {
	f, ok := filter.(*netlink.BpfFilter)
	if !ok {
		return false
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(f.Id))
	if err != nil {
		return false
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return false
	}
	ids, _ := info.MapIDs()
	return slices.Contains(ids, id)
}

// Remove detaches from the interfaces and unpins everything below pinDir: this node forwards no
// more. What is not there is no error. Call it on a thread in the interfaces' namespace.
func Remove(pinDir string, interfaces []string) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	var errs []error
	for _, name := range interfaces {
		iface, err := nl.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err == nil {
			err = removeFilter(nl, iface)
		}
		errs = append(errs, err)
	}
	links, err := os.ReadDir(filepath.Join(pinDir, linkFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list pinned links: %w", err))
	}
	for _, entry := range links {
		errs = append(errs, detachLink(filepath.Join(pinDir, linkFolder, entry.Name())))
	}
	if err := os.RemoveAll(pinDir); err != nil {
		errs = append(errs, fmt.Errorf("unpin: %w", err))
	}
	return errors.Join(errs...)
}

// detachLink detaches at once, even when another process still holds the link.
func detachLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	if d, ok := l.(interface{ Detach() error }); ok {
		if err := d.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
			return fmt.Errorf("detach link: %w", err)
		}
	}
	return nil
}
