// Package ethtooltest switches offloads of interfaces for tests and benchmarks. Product code must
// not import it.
package ethtooltest

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of the ethtool ioctl that take one number, 0 or 1 (linux/ethtool.h).
const (
	TxChecksum uint32 = 0x17
	GRO        uint32 = 0x2c
)

// value is struct ethtool_value.
type value struct{ command, data uint32 }

// request is struct ifreq with ifr_data; a union follows the name, 24 bytes on 64-bit machines.
type request struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// Set applies one command to an interface of the thread's network namespace.
func Set(iface string, command, data uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	v := &value{command, data}
	r := request{data: unsafe.Pointer(v)}
	copy(r.name[:unix.IFNAMSIZ-1], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
