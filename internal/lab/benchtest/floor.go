package benchtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"pontoon/internal/lab"
)

// Floors are contenders that nobody would use: programs that do nothing but
// send packets on, at each hook. What a load balancer costs beyond them is its
// own work; what they cost beyond a cable is the hook's.
func Floors() []Contender {
	return []Contender{
		{Name: "floor-tc", Start: startFloor(false)},
		{Name: "floor-xdp", XDP: true, Start: startFloor(true)},
	}
}

// hop is one direction through a floor: packets to a /24 leave by an interface.
type hop struct {
	to       netip.Prefix
	ifindex  int
	src, dst net.HardwareAddr
}

// program rewrites the hardware addresses of IPv4 packets to the hop's subnet
// and redirects them. Everything else passes, ARP first of all.
func (h hop) program(data, dataEnd int16, pass int32) asm.Instructions {
	net4 := h.to.Masked().Addr().As4()
	subnet := binary.NativeEndian.Uint32(net4[:])
	mask := binary.NativeEndian.Uint32([]byte{255, 255, 255, 0})
	var ipv4 [2]byte
	binary.BigEndian.PutUint16(ipv4[:], 0x0800)
	macs := append(append([]byte{}, h.dst...), h.src...)
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, data, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, dataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 34),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R5, int32(binary.NativeEndian.Uint16(ipv4[:])), "pass"),
		asm.LoadMem(asm.R5, asm.R2, 30, asm.Word),
		asm.And.Imm32(asm.R5, int32(mask)),
		asm.JNE.Imm32(asm.R5, int32(subnet), "pass"),
		asm.LoadImm(asm.R5, int64(binary.NativeEndian.Uint64(macs)), asm.DWord),
		asm.StoreMem(asm.R2, 0, asm.R5, asm.DWord),
		asm.LoadImm(asm.R5, int64(binary.NativeEndian.Uint32(macs[8:])), asm.DWord),
		asm.StoreMem(asm.R2, 8, asm.R5, asm.Word),
		asm.Mov.Imm(asm.R1, int32(h.ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
	}
}

// attach puts the hop before an interface of the thread's namespace; it stays
// as long as the link is open.
func (h hop) attach(iface int, xdp bool) (link.Link, error) {
	spec := &ebpf.ProgramSpec{Name: "pt_floor", Type: ebpf.SchedCLS, License: "GPL", Instructions: h.program(skbData, skbDataEnd, tcxNext)}
	if xdp {
		spec.Type, spec.Instructions = ebpf.XDP, h.program(xdpData, xdpDataEnd, xdpPass)
	}
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("load floor: %w", err)
	}
	defer prog.Close() // the link holds it
	var l link.Link
	if xdp {
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: iface, Flags: link.XDPDriverMode})
	} else {
		l, err = link.AttachTCX(link.TCXOptions{Program: prog, Interface: iface, Attach: ebpf.AttachTCXIngress})
	}
	if err != nil {
		return nil, fmt.Errorf("attach floor: %w", err)
	}
	return l, nil
}

func startFloor(xdp bool) func(context.Context, *Site) ([]Target, error) {
	return func(ctx context.Context, s *Site) ([]Target, error) {
		back, err := s.neighbour(ctx, s.Back, s.Endpoints()[0])
		if err != nil {
			return nil, err
		}
		front, err := s.neighbour(ctx, s.Front, s.clients()[0])
		if err != nil {
			return nil, err
		}
		back.to, front.to = s.BackPrefix(), s.FrontPrefix()
		err = s.Node.Do(func() error {
			// Packets that arrive in front leave at the back.
			in, err := back.attach(front.ifindex, xdp)
			if err != nil {
				return err
			}
			out, err := front.attach(back.ifindex, xdp)
			if err != nil {
				return errors.Join(err, in.Close())
			}
			s.keep(in, out)
			return nil
		})
		if err != nil {
			return nil, err
		}
		return []Target{{Addr: s.Endpoints()[0]}}, nil
	}
}

// neighbour finds out what the machine needs to send to an address by an
// interface. The kernel resolves it when the first packet is sent there.
func (s *Site) neighbour(ctx context.Context, iface string, addr netip.Addr) (h hop, err error) {
	c, err := s.Node.ListenUDP(netip.AddrPort{})
	if err != nil {
		return h, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	err = lab.WaitFor(ctx, "the neighbour "+addr.String(), func(context.Context) error {
		if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(addr, 9)); err != nil {
			return err
		}
		return s.Node.Do(func() error {
			l, err := netlink.LinkByName(iface)
			if err != nil {
				return err
			}
			h.ifindex, h.src = l.Attrs().Index, l.Attrs().HardwareAddr
			known, err := netlink.NeighList(h.ifindex, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, n := range known {
				if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == addr && len(n.HardwareAddr) == 6 {
					h.dst = n.HardwareAddr
					return nil
				}
			}
			return errors.New("not resolved yet")
		})
	})
	return h, err
}
