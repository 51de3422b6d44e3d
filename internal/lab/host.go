package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
)

// Host is one machine of the lab: a namespace with its legs into the
// segments. Its methods are safe for concurrent use.
type Host struct {
	lab  *Lab
	spec hostSpec
	ns   string
}

// Name is the host's name inside the lab, like client1.
func (h *Host) Name() string { return h.spec.name }

// Namespace is the host's named network namespace, as in `ip netns list`.
func (h *Host) Namespace() string { return h.ns }

// Addr is the address of the host's first leg.
func (h *Host) Addr() netip.Addr { return h.spec.ports[0].address.Addr() }

// Addrs are the addresses of all legs, in the order of Interfaces.
func (h *Host) Addrs() []netip.Prefix {
	addrs := make([]netip.Prefix, len(h.spec.ports))
	for i, p := range h.spec.ports {
		addrs[i] = p.address
	}
	return addrs
}

// Addr6 is the IPv6 address of the host's first leg, when the kernel has IPv6.
func (h *Host) Addr6() netip.Addr { return h.spec.ports[0].address6.Addr() }

// Addrs6 are the IPv6 addresses of all legs, in the order of Interfaces.
func (h *Host) Addrs6() []netip.Prefix {
	addrs := make([]netip.Prefix, len(h.spec.ports))
	for i, p := range h.spec.ports {
		addrs[i] = p.address6
	}
	return addrs
}

// Interfaces are the names of the legs inside the host: eth1, eth2.
func (h *Host) Interfaces() []string {
	names := make([]string, len(h.spec.ports))
	for i, p := range h.spec.ports {
		names[i] = p.iface
	}
	return names
}

// Do runs fn on a thread that is inside the host's namespace. What fn opens
// there stays there; fn must not start goroutines that count on the
// namespace.
func (h *Host) Do(fn func() error) error { return inNS(h.ns, fn) }

// network names a protocol with the family of an address: "tcp4" or "tcp6". A
// socket of one family keeps the other free for another.
func network(protocol string, addr netip.AddrPort) string {
	if addr.Addr().Is6() {
		return protocol + "6"
	}
	return protocol + "4"
}

// Listen opens a TCP listener on the host, of the family of addr only.
func (h *Host) Listen(addr netip.AddrPort) (net.Listener, error) {
	var ln net.Listener
	err := h.Do(func() (err error) {
		ln, err = net.ListenTCP(network("tcp", addr), net.TCPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s at %s: %w", h.spec.name, addr, err)
	}
	return ln, nil
}

// ListenUDP opens a UDP socket on the host, of the family of addr only.
func (h *Host) ListenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.ListenUDP(network("udp", addr), net.UDPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s at udp %s: %w", h.spec.name, addr, err)
	}
	return c, nil
}

// Start runs a prepared command on the host, in a process group of its own.
// It is killed by Close at the latest. The command's Stdin, Stdout and Stderr
// should be files or nil: with other readers and writers the process counts
// as ended only when they are at their end.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	p, err := h.lab.start(h.ns, cmd)
	if err != nil {
		return nil, fmt.Errorf("on %s: %w", h.spec.name, err)
	}
	return p, nil
}

// Run starts a prepared command on the host and waits for its end. When ctx
// ends first the process is killed.
func (h *Host) Run(ctx context.Context, cmd *exec.Cmd) error {
	p, err := h.Start(cmd)
	if err != nil {
		return err
	}
	err = p.Wait(ctx)
	if p.Running() {
		killed, cancel := context.WithTimeout(context.WithoutCancel(ctx), reapTimeout)
		defer cancel()
		err = errors.Join(err, p.Kill(killed))
	}
	return err
}

// AnswerPings says whether the host answers to ICMP and ICMPv6 echo, as it does
// from the beginning.
func (h *Host) AnswerPings(on bool) error {
	value := []byte("1")
	if on {
		value = []byte("0")
	}
	err := h.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", value, 0)
		if haveIPv6() {
			err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv6/icmp/echo_ignore_all", value, 0))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("answer to pings of %s: %w", h.spec.name, err)
	}
	return nil
}

// LinksDown takes the carrier of all the host's legs away at once, as if the
// cables were pulled: the segments' ends go down.
func (h *Host) LinksDown() error { return h.setLinks(false) }

// LinksUp gives the carrier back.
func (h *Host) LinksUp() error { return h.setLinks(true) }

func (h *Host) setLinks(up bool) error {
	var errs []error
	for _, p := range h.spec.ports {
		errs = append(errs, h.lab.segments[p.segment].setPort(p.peerName(h.spec.name), up))
	}
	return errors.Join(errs...)
}

// SetLink takes the carrier of one leg, named as inside the host, away or
// gives it back.
func (h *Host) SetLink(iface string, up bool) error {
	for _, p := range h.spec.ports {
		if p.iface == iface {
			return h.lab.segments[p.segment].setPort(p.peerName(h.spec.name), up)
		}
	}
	return fmt.Errorf("host %s has no interface %s", h.spec.name, iface)
}

// destroy removes the host's cables and its namespace, and with them all that
// its kernel knew.
func (h *Host) destroy() error {
	var errs []error
	for _, p := range h.spec.ports {
		errs = append(errs, h.lab.segments[p.segment].unplug(p.peerName(h.spec.name)))
	}
	return errors.Join(append(errs, deleteNS(h.ns))...)
}

// Cable is the segment's end of one of the host's cables, for who wants to make it
// a bad one: how to run something in the segment's namespace, and the name of the
// interface there. After a power loss it is another cable.
func (h *Host) Cable(iface string) (do func(func() error) error, name string, err error) {
	for _, p := range h.spec.ports {
		if p.iface == iface {
			ns := h.lab.segments[p.segment].ns
			return func(fn func() error) error { return inNS(ns, fn) }, p.peerName(h.spec.name), nil
		}
	}
	return nil, "", fmt.Errorf("host %s has no interface %s", h.spec.name, iface)
}

// MACs are the hardware addresses of all legs, in the order of Interfaces. They
// stay over a power loss.
func (h *Host) MACs() []net.HardwareAddr {
	macs := make([]net.HardwareAddr, len(h.spec.ports))
	for i, p := range h.spec.ports {
		macs[i] = p.mac
	}
	return macs
}
