package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of the hooks in use.
const (
	usedTCX    = "tcx"
	usedClsact = "clsact"
)

// Where our filter sits on a clsact hook. The priority leaves room before and after.
const (
	filterName     = "pontoon_ingress"
	filterPriority = 100
	filterHandle   = 1
)

// hooks keeps the program attached to the interfaces.
type hooks struct {
	log     *slog.Logger
	nl      *netlink.Handle // bound to the namespace of the thread that made it
	program *ebpf.Program
	dir     string // of pinned links
	names   []string
	clsact  bool // forced

	mu     sync.Mutex
	index  map[string]int // of the interface attached to
	status map[string]string
}

func newHooks(opts Options, program *ebpf.Program, dir string) (*hooks, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &hooks{
		log: opts.Logger, nl: nl, program: program, dir: dir, names: opts.Interfaces,
		clsact: opts.Hook == HookClsact, index: map[string]int{}, status: map[string]string{},
	}, nil
}

func (h *hooks) close() error {
	h.nl.Close()
	return nil
}

// use puts another program in the place of the present one, on each interface in one step.
func (h *hooks) use(program *ebpf.Program) {
	h.mu.Lock()
	h.program = program
	clear(h.index)
	h.mu.Unlock()
	h.ensure()
}

func (h *hooks) report() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.status)
}

// ensure attaches to every interface that is not attached yet, or that is a new one of the same
// name. It logs changes only.
func (h *hooks) ensure() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range h.names {
		used, err := h.ensureOne(name)
		if err != nil {
			used = err.Error()
			delete(h.index, name)
		}
		if h.status[name] == used {
			continue
		}
		h.status[name] = used
		if err != nil {
			h.log.Warn("interface not attached", "interface", name, "err", err)
			continue
		}
		h.log.Info("interface attached", "interface", name, "hook", used)
	}
}

func (h *hooks) ensureOne(name string) (string, error) {
	iface, err := h.nl.LinkByName(name)
	if err != nil {
		return "", fmt.Errorf("find interface %s: %w", name, err)
	}
	index := iface.Attrs().Index
	if h.index[name] == index && h.present(name, iface) {
		return h.status[name], nil
	}
	used, err := h.attach(name, iface)
	if err != nil {
		return "", err
	}
	h.index[name] = index
	return used, nil
}

// present tells whether our attachment is still there: someone may have removed it.
func (h *hooks) present(name string, iface netlink.Link) bool {
	if h.status[name] == usedClsact {
		filter, err := findFilter(h.nl, iface)
		return err == nil && filter != nil
	}
	l, err := link.LoadPinnedLink(h.pin(name), nil)
	if err != nil {
		return false
	}
	defer l.Close()
	return linkIndex(l) == iface.Attrs().Index
}

// pin is where the link to the interface is pinned. A BPF file system allows no dots in names,
// which those of VLAN interfaces have.
func (h *hooks) pin(name string) string {
	return filepath.Join(h.dir, strings.NewReplacer("%", "%25", ".", "%2e").Replace(name))
}

// attach prefers TCX. Whichever hook is taken, a leftover of ours on the other one is removed
// after the new one works, so that no packet passes between.
func (h *hooks) attach(name string, iface netlink.Link) (string, error) {
	if !h.clsact {
		err := h.attachTCX(name, iface.Attrs().Index)
		if err == nil {
			return usedTCX, removeFilter(h.nl, iface)
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return "", fmt.Errorf("attach tcx to %s: %w", name, err)
		}
	}
	if err := h.attachClsact(iface); err != nil {
		return "", fmt.Errorf("attach clsact to %s: %w", name, err)
	}
	return usedClsact, removeLink(h.pin(name))
}

// attachTCX replaces the program in the pinned link if that still leads to the interface, else
// makes a new link.
func (h *hooks) attachTCX(name string, index int) error {
	old, err := link.LoadPinnedLink(h.pin(name), nil)
	switch {
	case err == nil:
		defer old.Close()
		if linkIndex(old) == index {
			return old.Update(h.program)
		}
		if err := removeLink(h.pin(name)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open pinned link: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: h.program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(h.pin(name)); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// linkIndex is the interface a TCX link is attached to; 0 when that has vanished.
func linkIndex(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return 0
	}
	return int(info.TCX().Ifindex)
}

// removeLink unpins, which detaches when nobody else holds the link.
func removeLink(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin link: %w", err)
	}
	return nil
}

// attachClsact replaces our filter in one step; other filters on the interface stay.
func (h *hooks) attachClsact(iface netlink.Link) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: iface.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0),
	}}
	if err := h.nl.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	if err := h.nl.FilterReplace(newFilter(iface, h.program.FD())); err != nil {
		return fmt.Errorf("replace filter: %w", err)
	}
	return nil
}

func newFilter(iface netlink.Link, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: iface.Attrs().Index,
			Parent:    netlink.HANDLE_MIN_INGRESS,
			Handle:    filterHandle,
			Protocol:  unix.ETH_P_ALL,
			Priority:  filterPriority,
		},
		Fd: fd, Name: filterName, DirectAction: true,
	}
}

// findFilter returns our filter on the interface's ingress, nil if there is none.
func findFilter(nl *netlink.Handle, iface netlink.Link) (netlink.Filter, error) {
	filters, err := nl.FilterList(iface, netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil // no clsact here
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", iface.Attrs().Name, err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == filterName && b.Priority == filterPriority {
			return f, nil
		}
	}
	return nil, nil
}

func removeFilter(nl *netlink.Handle, iface netlink.Link) error {
	filter, err := findFilter(nl, iface)
	if err != nil || filter == nil {
		return err
	}
	if err := nl.FilterDel(filter); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove filter from %s: %w", iface.Attrs().Name, err)
	}
	return nil
}
