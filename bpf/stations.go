package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The netdev family of generic netlink (linux/netdev.h), kernels 6.3 and later.
const (
	netdevFamily       = "netdev"
	netdevGetDevice    = 1
	netdevAttrIndex    = 1
	netdevAttrFeatures = 3
	featureXmit        = 1 << 2
	featureXmitFrags   = 1 << 6
)

// features asks the kernel what interfaces can do with XDP frames, in the namespace of the thread
// that made it.
type features struct {
	family  uint16
	sockets map[int]*nl.SocketHandle // one, which counts its requests
}

// newFeatures returns nil when the kernel cannot be asked.
func newFeatures() *features {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return nil
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return nil
	}
	return &features{family: family.ID, sockets: map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: socket}}}
}

func (f *features) close() {
	if f != nil {
		f.sockets[unix.NETLINK_GENERIC].Close()
	}
}

// of returns the XDP features of an interface.
func (f *features) of(index int) (uint64, error) {
	request := nl.NewNetlinkRequest(int(f.family), 0)
	request.Sockets = f.sockets
	// Not nl.Genlmsg: it sends two bytes beyond itself, which this family wants to be zero.
	request.AddRawData([]byte{netdevGetDevice, 1, 0, 0})
	request.AddRawData(nl.NewRtAttr(netdevAttrIndex, nl.Uint32Attr(uint32(index))).Serialize())
	replies, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for XDP features: %w", err)
	}
	for _, reply := range replies {
		attrs, err := nl.ParseRouteAttr(reply[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("read XDP features: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevAttrFeatures && len(a.Value) >= 8 {
				return binary.NativeEndian.Uint64(a.Value), nil
			}
		}
	}
	return 0, errors.New("no XDP features in the answer")
}

// stationFlags says what an interface sends of what XDP redirects to it. What generic XDP redirects
// every interface sends. A kernel that cannot be asked is believed to do so where XDP is attached:
// drivers prepare their queues for it then.
func (h *hooks) stationFlags(index int, attached bool) uint8 {
	if h.hook == HookXDPGeneric {
		return uint8(pontoonStationFlagSTATION_F_XMIT)
	}
	if h.features == nil {
		if attached {
			return uint8(pontoonStationFlagSTATION_F_XMIT)
		}
		return 0
	}
	have, err := h.features.of(index)
	if err != nil {
		h.log.Debug("XDP features not known", "index", index, "err", err)
		return 0
	}
	var flags uint8
	if have&featureXmit != 0 {
		flags |= uint8(pontoonStationFlagSTATION_F_XMIT)
	}
	if have&featureXmitFrags != 0 {
		flags |= uint8(pontoonStationFlagSTATION_F_XMIT_FRAGS)
	}
	return flags
}

// describe writes what the XDP program needs to know of the interfaces. Until an interface stands
// there the program leaves its packets, and those that would leave by it, to TC.
func (h *hooks) describe() {
	if h.programs.xdp == nil {
		return
	}
	want := map[uint32]pontoonStation{}
	for _, name := range h.names {
		iface, err := h.nl.LinkByName(name)
		if err != nil || len(iface.Attrs().HardwareAddr) != 6 {
			continue
		}
		a := iface.Attrs()
		s := pontoonStation{Ifindex: uint32(a.Index), Mtu: uint32(a.MTU)}
		copy(s.Mac[:], a.HardwareAddr)
		s.Flags = h.stationFlags(a.Index, h.xdpPresent(name, a.Index))
		if a.ParentDevBus != "" {
			s.Flags |= uint8(pontoonStationFlagSTATION_F_TX)
		}
		slot := s.Ifindex % h.stations.MaxEntries()
		if _, taken := want[slot]; taken {
			h.log.Debug("interface left to TC: its number meets another's", "interface", name)
			continue
		}
		want[slot] = s
	}
	if err := h.tell(want); err != nil {
		h.log.Warn("interfaces not told to XDP", "err", err)
	}
}

// tell changes what differs, at the first time also what an earlier life has left.
func (h *hooks) tell(want map[uint32]pontoonStation) error {
	if h.told == nil {
		told := map[uint32]pontoonStation{}
		for slot := range h.stations.MaxEntries() {
			var s pontoonStation
			if err := h.stations.Lookup(slot, &s); err != nil {
				return fmt.Errorf("read station: %w", err)
			}
			if s.Ifindex != 0 {
				told[slot] = s
			}
		}
		h.told = told
	}
	for slot := range h.told {
		if _, still := want[slot]; still {
			continue
		}
		if err := h.stations.Put(slot, pontoonStation{}); err != nil {
			return fmt.Errorf("clear station: %w", err)
		}
		delete(h.told, slot)
	}
	for slot, s := range want {
		if h.told[slot] == s {
			continue
		}
		if err := h.stations.Put(slot, s); err != nil {
			return fmt.Errorf("write station: %w", err)
		}
		h.told[slot] = s
	}
	return nil
}

// Of linux/ethtool.h.
const (
	ethtoolGetFlags   = 0x25
	ethtoolFlagRxVLAN = 1 << 8
)

// stripsVLAN tells whether an interface takes VLAN tags out of frames; ioctl is a socket in its
// namespace. One that does not answer does not.
func stripsVLAN(ioctl int, name string) bool {
	value := struct{ cmd, data uint32 }{cmd: ethtoolGetFlags}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ioctl), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(&value)
	return errno == 0 && value.data&ethtoolFlagRxVLAN != 0
}

func ioctlSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}
