package bpftest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Injector sends frames through the program that a running load balancer has on an interface, as if
// they had come in there. What the program forwards goes nowhere; what it remembers is real.
type Injector struct {
	program *ebpf.Program
	index   uint32
	mac     net.HardwareAddr
}

// NewInjector takes the TC program of the interface from the pins below dir. Call it, and whatever
// it returns, on a thread in the interface's namespace.
func NewInjector(dir, iface string) (*Injector, error) {
	dev, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("find interface: %w", err)
	}
	id, err := attachedTo(dir, iface)
	if err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open program: %w", err)
	}
	return &Injector{program: program, index: uint32(dev.Index), mac: dev.HardwareAddr}, nil
}

// attachedTo is the TC program of the interface: of its link, or of its filter on kernels without TCX.
func attachedTo(dir, iface string) (ebpf.ProgramID, error) {
	l, err := link.LoadPinnedLink(filepath.Join(dir, "links", iface), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return filterOf(iface)
	}
	if err != nil {
		return 0, fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("look at link: %w", err)
	}
	return info.Program, nil
}

func filterOf(iface string) (ebpf.ProgramID, error) {
	dev, err := netlink.LinkByName(iface)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", iface, err)
	}
	filters, err := netlink.FilterList(dev, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return 0, fmt.Errorf("list filters of %s: %w", iface, err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, "pontoon") {
			return ebpf.ProgramID(b.Id), nil
		}
	}
	return 0, fmt.Errorf("interface %s has no program", iface)
}

// Close lets go of the program.
func (i *Injector) Close() error { return i.program.Close() }

// testContext is the part of struct __sk_buff up to ifindex.
type testContext struct {
	Unused         [9]uint32
	IngressIfindex uint32
	Ifindex        uint32
	Rest           [37]uint32
}

// TCP runs one IPv4 segment without payload through the program and returns its verdict.
func (i *Injector) TCP(src, dst netip.AddrPort, flags byte) (uint32, error) {
	frame := make([]byte, 60)
	copy(frame, i.mac)
	copy(frame[6:], []byte{2, 0, 0, 0, 0, 1})
	ip, tcp := frame[14:34], frame[34:54]
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], 40)
	copy(ip[12:], src.Addr().AsSlice())
	copy(ip[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^fold(0, ip))
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	tcp[12], tcp[13] = 5<<4, flags
	pseudo := uint32(6 + len(tcp))
	binary.BigEndian.PutUint16(tcp[16:], ^fold(pseudo+uint32(fold(0, ip[12:20])), tcp))
	return i.program.Run(&ebpf.RunOptions{Data: frame[:54], Context: testContext{Ifindex: i.index}})
}

// fold is the sum of RFC 1071 over b, started with sum.
func fold(sum uint32, b []byte) uint16 {
	for at := 0; at < len(b); at += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[at:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// Half is what is the same of one half of a connection on every node: its key and what becomes of
// packets that match, in the bytes of struct flow_key and of struct flow up to its endpoint.
type Half struct {
	Key    [40]byte
	Change [40]byte
}

// Established reads the halves of established connections out of the flow table pinned below dir.
// The value is the slot of the node that owns it.
func Established(dir string) (map[Half]uint8, error) {
	const state, owner, established = 48, 50, 4
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "flows"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open flow table: %w", err)
	}
	defer m.Close()
	all := map[Half]uint8{}
	var cursor ebpf.MapBatchCursor
	keys, values := make([][40]byte, 4096), make([][64]byte, 4096)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			return nil, fmt.Errorf("read flow table: %w", err)
		}
		for i := range n {
			if values[i][state] == established {
				all[Half{keys[i], [40]byte(values[i][:40])}] = values[i][owner]
			}
		}
		if done {
			return all, nil
		}
	}
}

// Forget takes both halves of the connections of some clients out of the flow table pinned below dir,
// behind everybody's back, and returns how many halves that were.
func Forget(dir string, whose func(client netip.AddrPort) bool) (int, error) {
	all, err := Established(dir)
	if err != nil {
		return 0, err
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "flows"), nil)
	if err != nil {
		return 0, fmt.Errorf("open flow table: %w", err)
	}
	defer m.Close()
	forgotten := 0
	for half := range all {
		k := half.Key
		source := netip.AddrPortFrom(netip.AddrFrom16([16]byte(k[:16])).Unmap(), binary.BigEndian.Uint16(k[32:]))
		target := netip.AddrPortFrom(netip.AddrFrom16([16]byte(k[16:32])).Unmap(), binary.BigEndian.Uint16(k[34:]))
		if !whose(source) && !whose(target) {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return forgotten, fmt.Errorf("forget a flow: %w", err)
		}
		forgotten++
	}
	return forgotten, nil
}

// BatchLimit is how many entries a second the kernel takes in batches of 4096, into an empty table of
// the flow table's form.
func BatchLimit(entries int) (perSecond float64, err error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 64, MaxEntries: uint32(entries)})
	if err != nil {
		return 0, fmt.Errorf("make table: %w", err)
	}
	defer m.Close()
	keys, values := make([][40]byte, 4096), make([][64]byte, 4096)
	var took time.Duration
	for at := 0; at < entries; at += len(keys) {
		n := min(len(keys), entries-at)
		for i := range n {
			binary.LittleEndian.PutUint64(keys[i][:], uint64(at+i)*0x9e3779b97f4a7c15)
		}
		began := time.Now()
		if _, err := m.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			return 0, fmt.Errorf("fill table: %w", err)
		}
		took += time.Since(began)
	}
	return float64(entries) / took.Seconds(), nil
}
