package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// xdpSuffix tells the pins of the XDP hook from those of TC. Interface names cannot end so: a
// percent sign of theirs is escaped.
const xdpSuffix = "%xdp"

// device is what the choice of a hook depends on.
type device struct {
	kind       string // of a virtual interface: veth, bridge, vlan, …
	bus        string // that it sits on; empty: none, it is virtual
	stripsVLAN bool   // takes tags out of frames before programs see them
	hasVLANs   bool   // VLAN interfaces are made on it
	foreign    uint32 // XDP program of somebody else
	mtu        int    // not part of the choice, but of whether a driver takes XDP
}

// choice is the hook for an interface and why.
type choice struct {
	xdp    bool
	reason string
}

// choose decides between XDP and TC. Only network cards gain from native XDP: it sees packets
// before receive offload has merged them, which costs virtual interfaces, that are handed them
// merged, more than it saves.
func choose(hook string, d device) choice {
	c := choice{reason: "asked for"}
	switch {
	case hook == HookXDP || hook == HookXDPGeneric:
		c.xdp = true
	case hook != HookAuto:
		return c
	case d.bus == "":
		return choice{reason: "virtual interface (" + d.kind + "): XDP would lose segmentation offload"}
	case d.bus == "virtio" || d.bus == "vmbus" || d.bus == "xen":
		return choice{reason: "network card of a virtual machine (" + d.bus + "): XDP would lose receive offload"}
	default:
		c = choice{xdp: true, reason: "network card: XDP is fastest"}
	}
	if d.foreign != 0 {
		return choice{reason: "another XDP program is attached: number " + strconv.FormatUint(uint64(d.foreign), 10)}
	}
	if d.stripsVLAN && d.hasVLANs {
		return choice{reason: "VLANs are made on it and XDP would not see their tags: switch rx-vlan-offload off to have XDP"}
	}
	return c
}

// look finds out what there is to know of an interface.
func (h *hooks) look(name string, iface netlink.Link) device {
	a := iface.Attrs()
	d := device{kind: iface.Type(), bus: a.ParentDevBus, mtu: a.MTU}
	if a.Xdp != nil && a.Xdp.Attached && !h.xdpPresent(name, a.Index) {
		d.foreign = a.Xdp.ProgId
	}
	if !h.mayXDP() || d.bus == "" && h.hook == HookAuto {
		return d
	}
	d.stripsVLAN = stripsVLAN(h.ioctl, name)
	if links, err := h.nl.LinkList(); err == nil && d.stripsVLAN {
		for _, l := range links {
			d.hasVLANs = d.hasVLANs || l.Type() == "vlan" && l.Attrs().ParentIndex == a.Index
		}
	}
	return d
}

func (h *hooks) mayXDP() bool {
	return h.hook == HookAuto || h.hook == HookXDP || h.hook == HookXDPGeneric
}

// wantXDP tells whether an interface that is there wants XDP.
func (h *hooks) wantXDP() bool {
	if h.hook != HookAuto {
		return h.mayXDP()
	}
	for _, name := range h.names {
		iface, err := h.nl.LinkByName(name)
		if err == nil && choose(h.hook, h.see(name, iface)).xdp {
			return true
		}
	}
	return false
}

func (h *hooks) xdpPin(name string) string { return h.pin(name) + xdpSuffix }

// xdpPresent tells whether our XDP link is attached to the interface.
func (h *hooks) xdpPresent(name string, index int) bool {
	l, err := link.LoadPinnedLink(h.xdpPin(name), nil)
	if err != nil {
		return false
	}
	defer l.Close()
	return xdpIndex(l) == index
}

// xdpIndex is the interface an XDP link is attached to; 0 when that has vanished.
func xdpIndex(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.XDP() == nil {
		return 0
	}
	return int(info.XDP().Ifindex)
}

// attachXDP brings the interface to the chosen XDP, or to none. The TC program is there already,
// so packets are served whichever way this ends. The second result is false when there is no XDP.
// An error says that a program of an earlier set may still be there.
func (h *hooks) attachXDP(name string, iface netlink.Link, c choice) (string, bool, error) {
	if c.xdp && h.programs.xdp == nil {
		h.lacking = true
		c = choice{reason: "XDP programs are not loaded: " + c.reason}
	}
	if !c.xdp {
		if err := dropLink(h.xdpPin(name)); err != nil {
			return "", false, fmt.Errorf("take XDP off %s: %w", name, err)
		}
		return c.reason, false, nil
	}
	if refused := h.linkXDP(name, iface.Attrs()); refused != nil {
		if err := dropLink(h.xdpPin(name)); err != nil {
			return "", false, fmt.Errorf("replace XDP on %s: %w", name, errors.Join(refused, err))
		}
		h.log.Warn("interface takes no XDP: TC does without", "interface", name, "err", refused)
		return "XDP refused: " + refused.Error(), false, nil
	}
	if iface.Attrs().ParentDevBus == "" {
		h.log.Warn("XDP on a virtual interface: its other end must send whole checksums (tx-checksumming off) and receive by NAPI (gro on)",
			"interface", name)
	}
	return c.reason, true, nil
}

// Modes of XDP as the kernel tells them of an interface (linux/if_link.h).
const (
	xdpAttachedDriver  = 1
	xdpAttachedGeneric = 2
)

// xdpMode is how XDP is attached where it is, in the terms of the link and of the kernel.
func (h *hooks) xdpMode() (link.XDPAttachFlags, uint32) {
	if h.hook == HookXDPGeneric {
		return link.XDPGenericMode, xdpAttachedGeneric
	}
	return link.XDPDriverMode, xdpAttachedDriver
}

// linkXDP replaces the program in the pinned link if that still leads to the interface in the wanted
// mode, else makes a new link. After an error the old link may still be there.
func (h *hooks) linkXDP(name string, a *netlink.LinkAttrs) error {
	flags, mode := h.xdpMode()
	old, err := link.LoadPinnedLink(h.xdpPin(name), nil)
	switch {
	case err == nil:
		defer old.Close()
		if xdpIndex(old) == a.Index && a.Xdp != nil && a.Xdp.AttachMode == mode {
			return old.Update(h.programs.xdp)
		}
		if err := dropLink(h.xdpPin(name)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open pinned link: %w", err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Interface: a.Index, Program: h.programs.xdp, Flags: flags})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(h.xdpPin(name)); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// dropLink detaches and unpins a link if there is one. Unpinning alone detaches some time later.
func dropLink(path string) error {
	if err := detachLink(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return removeLink(path)
}

// xdpFrags tells whether XDP programs are to have frames of several buffers: the kernel (5.18 and
// later) lets them, and it is not generic XDP, which gives such programs a copy of the packet that
// has lost the length of its link header, so that TC behind it misreads what they pass on. If not,
// it takes the mark off the programs of spec.
func xdpFrags(spec *ebpf.CollectionSpec, hook string) uint8 {
	if hook != HookXDPGeneric {
		probe, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
		})
		if err == nil {
			_ = probe.Close()
			return 1
		}
	}
	for _, p := range spec.Programs {
		p.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	return 0
}
