package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Names of the hooks in use.
const (
	usedTCX    = "tcx"
	usedClsact = "clsact"
	usedXDP    = "xdp+" // and one of the above

	usedXDPGeneric = "xdp-generic+" // and one of the above
)

// Attachment is how an interface is attached.
type Attachment struct {
	Hook   string // "tcx", "clsact", either with "xdp+" or "xdp-generic+" before it; empty: not attached
	Reason string // why this hook, or why none
}

// Where our filter sits on a clsact hook. The priority leaves room before and after.
const (
	filterName     = "pontoon_ingress"
	filterPriority = 100
	filterHandle   = 1
)

// hooks keeps the programs attached to the interfaces.
type hooks struct {
	log      *slog.Logger
	space    netns.NsHandle  // the namespace of the interfaces
	nl       *netlink.Handle // bound to it
	ioctl    int             // so is this socket
	features *features       // and this; nil: not known on this kernel
	programs programs
	stations *ebpf.Map
	told     map[uint32]pontoonStation // what stands in stations
	dir      string                    // of pinned links
	names    []string
	hook     string

	// see finds out about an interface: look, but for tests.
	see func(name string, iface netlink.Link) device

	mu       sync.Mutex
	settings map[string]setting
	status   map[string]Attachment
	lacking  bool // an interface would have XDP if its programs were loaded
}

// setting is what an interface was attached for; when it changes, it is attached anew.
type setting struct {
	index  int
	mtu    int
	choice choice
}

// newHooks is for the namespace of the calling thread.
func newHooks(opts Options, stations *ebpf.Map, dir string) (*hooks, error) {
	space, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), space.Close())
	}
	ioctl, err := ioctlSocket()
	if err != nil {
		nl.Close()
		return nil, errors.Join(err, space.Close())
	}
	h := &hooks{
		log: opts.Logger, space: space, nl: nl, ioctl: ioctl, features: newFeatures(), stations: stations, dir: dir, names: opts.Interfaces,
		hook: opts.Hook, settings: map[string]setting{}, status: map[string]Attachment{},
	}
	h.see = h.look
	return h, nil
}

// close may be called again.
func (h *hooks) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.space.IsOpen() {
		return nil
	}
	h.nl.Close()
	h.features.close()
	return errors.Join(h.space.Close(), unix.Close(h.ioctl))
}

// within calls f on a thread in the namespace of the interfaces: a link is made for an interface by
// its number, which elsewhere means another one.
func (h *hooks) within(f func()) error {
	runtime.LockOSThread()
	here, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("look at the thread's namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(h.space) {
		defer runtime.UnlockOSThread()
		f()
		return nil
	}
	if err := netns.Set(h.space); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the namespace of the interfaces: %w", err)
	}
	f()
	// A thread that does not find back ends with this goroutine instead of serving others.
	if err := netns.Set(here); err != nil {
		return fmt.Errorf("leave the namespace of the interfaces: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// use attaches a set of programs, in the place of the present one on each interface in one step. The
// result is that of ensure.
func (h *hooks) use(p programs) bool {
	h.mu.Lock()
	h.programs = p
	h.lacking = false
	clear(h.settings)
	h.mu.Unlock()
	return h.ensure()
}

// lacksXDP tells whether an interface would have XDP if its programs were loaded.
func (h *hooks) lacksXDP() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lacking
}

func (h *hooks) report() map[string]Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.status)
}

// ensure attaches to every interface that is not attached yet, or that is a new one of the same
// name. It logs changes only. The result tells whether all interfaces that are there carry the
// present set of programs, so that no other is in use.
func (h *hooks) ensure() (settled bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.within(func() { settled = h.ensureAll() }); err != nil {
		h.log.Warn("interfaces not looked after", "err", err)
	}
	return settled
}

func (h *hooks) ensureAll() bool {
	settled := true
	for _, name := range h.names {
		got, err := h.ensureOne(name)
		if err != nil {
			got.Reason = err.Error()
			delete(h.settings, name)
			settled = settled && errors.As(err, new(netlink.LinkNotFoundError))
		}
		if h.status[name] == got {
			continue
		}
		h.status[name] = got
		if err != nil {
			h.log.Warn("interface not attached as it should be", "interface", name, "hook", got.Hook, "err", err)
			continue
		}
		h.log.Info("interface attached", "interface", name, "hook", got.Hook, "reason", got.Reason)
	}
	h.describe()
	return settled
}

// ensureOne may return an error and how the interface is attached all the same.
func (h *hooks) ensureOne(name string) (Attachment, error) {
	iface, err := h.nl.LinkByName(name)
	if err != nil {
		return Attachment{}, fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := carriesEthernet(iface); err != nil {
		return Attachment{}, err
	}
	d := h.see(name, iface)
	want := setting{index: iface.Attrs().Index, mtu: d.mtu, choice: choose(h.hook, d)}
	if h.settings[name] == want && h.present(name, iface) {
		return h.status[name], nil
	}
	used, err := h.attach(name, iface)
	if err != nil {
		return Attachment{}, err
	}
	reason, xdp, err := h.attachXDP(name, iface, want.choice)
	if err != nil {
		return Attachment{Hook: used}, err
	}
	h.settings[name] = want
	switch {
	case xdp && h.hook == HookXDPGeneric:
		used = usedXDPGeneric + used
	case xdp:
		used = usedXDP + used
	}
	return Attachment{Hook: used, Reason: reason}, nil
}

// ErrNotEthernet says that an interface carries no Ethernet frames, which are all that the data
// plane understands.
var ErrNotEthernet = errors.New("not an Ethernet interface")

// carriesEthernet: loopback, tun, WireGuard and most tunnels do not.
func carriesEthernet(iface netlink.Link) error {
	a := iface.Attrs()
	if a.EncapType == "ether" {
		return nil
	}
	return fmt.Errorf("interface %s (%s, link type %s): %w: the data plane forwards Ethernet frames; name network cards, bonds, bridges, VLANs or veths instead",
		a.Name, iface.Type(), a.EncapType, ErrNotEthernet)
}

// refuse names the interfaces that can never be attached to.
func (h *hooks) refuse() error {
	var errs []error
	for _, name := range h.names {
		if iface, err := h.nl.LinkByName(name); err == nil {
			errs = append(errs, carriesEthernet(iface))
		}
	}
	return errors.Join(errs...)
}

// present tells whether our attachment is still there: someone may have removed it.
func (h *hooks) present(name string, iface netlink.Link) bool {
	xdp, tc, both := strings.Cut(h.status[name].Hook, "+")
	if !both {
		tc = xdp
	} else if !h.xdpPresent(name, iface.Attrs().Index) {
		return false
	}
	if tc == usedClsact {
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
	if h.hook != HookClsact {
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
			return old.Update(h.programs.entry)
		}
		if err := removeLink(h.pin(name)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open pinned link: %w", err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: h.programs.entry, Attach: ebpf.AttachTCXIngress})
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
	if err := h.nl.FilterReplace(newFilter(iface, h.programs.entry.FD())); err != nil {
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
