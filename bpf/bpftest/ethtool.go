package bpftest

import (
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

// ForXDP prepares an end of a veth pair for XDP on either end: it sends whole checksums, and it
// takes frames in by NAPI, without which frames that XDP redirects to it are lost.
func (i Iface) ForXDP() {
	i.NS.tb.Helper()
	i.NS.Do(func() {
		i.NS.must("switch checksum offload off", ethtool(i.Name, ethtoolSetTxCsum, 0))
		i.NS.must("switch receive offload on", ethtool(i.Name, ethtoolSetGRO, 1))
	})
}

func ethtool(iface string, command, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	set := &struct{ command, value uint32 }{command, value}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(set)}
	copy(request.name[:unix.IFNAMSIZ-1], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(set)
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
