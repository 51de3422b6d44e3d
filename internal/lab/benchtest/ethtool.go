package benchtest

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of the ethtool ioctl that take one number (linux/ethtool.h).
const (
	ethtoolSetTxCsum = 0x17
	ethtoolSetGRO    = 0x2c
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct {
	cmd, data uint32
}

// ifreqData is struct ifreq with ifr_data; a union follows the name, 24 bytes
// on 64-bit machines.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// setOffloads prepares an interface of the thread's namespace. GRO is on
// everywhere: on a veth it means that frames are taken in by NAPI, as a
// network card does it, and without it frames that a program redirects onto
// the cable are lost. For XDP contenders the sums of sent packets are computed
// by the sender: a native program sees no partial checksums on a network card
// and cannot tell them on a veth.
func setOffloads(iface string, xdp bool) error {
	if err := ethtoolSet(iface, ethtoolSetGRO, 1); err != nil {
		return fmt.Errorf("switch receive offload of %s on: %w", iface, err)
	}
	if !xdp {
		return nil
	}
	if err := ethtoolSet(iface, ethtoolSetTxCsum, 0); err != nil {
		return fmt.Errorf("switch checksum offload of %s off: %w", iface, err)
	}
	return nil
}

func ethtoolSet(iface string, cmd, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	v := &ethtoolValue{cmd: cmd, data: value}
	r := ifreqData{data: unsafe.Pointer(v)}
	copy(r.name[:unix.IFNAMSIZ-1], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
