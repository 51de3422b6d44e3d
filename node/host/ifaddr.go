package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// ifaProto is IFA_PROTO of linux/if_addr.h, which golang.org/x/sys lacks.
	ifaProto = 11
	// addrProto marks an address as Pontoon's in IFA_PROTO (Linux 5.18). Older
	// kernels ignore the attribute, which is why IPv4 carries a label as well.
	// 0 to 3 are the kernel's own.
	addrProto = 0x50
	// labelSuffix marks an IPv4 address on every kernel. A label must begin with
	// the interface name and have at most 15 characters (IFNAMSIZ - 1).
	labelSuffix = ":pt"
	maxLabel    = unix.IFNAMSIZ - 1
	// dumpTries bounds how often a dump that a change interrupted is repeated.
	dumpTries = 5
)

// ifaddr is one address as the kernel reports it.
type ifaddr struct {
	addr  netip.Addr
	bits  int // length of the subnet's prefix
	index int // of the interface
	link  string
	label string
	proto uint8
	scope uint8
	flags uint32
}

// full reports whether the address stands alone, /32 or /128.
func (a ifaddr) full() bool { return a.bits == a.addr.BitLen() }

// marked reports whether Pontoon put the address there, now or before a restart.
// Only an address of full length can be: Pontoon sets no other, so an operator's
// subnet address is safe whatever its label says.
func (a ifaddr) marked() bool {
	return a.full() && (a.proto == addrProto || a.label != "" && a.label == labelFor(a.link))
}

func (a ifaddr) address() Address { return Address{Addr: a.addr, Link: a.link} }

func (a ifaddr) prefix() netip.Prefix { return netip.PrefixFrom(a.addr, a.bits) }

// labelFor returns the IPv4 label for a link, or "" if it would not fit.
func labelFor(link string) string {
	if len(link)+len(labelSuffix) > maxLabel {
		return ""
	}
	return link + labelSuffix
}

// dumpAddresses lists every address of the namespace, in the kernel's order
// (an interface's primary addresses first). names gives links by index.
func (h *Host) dumpAddresses(names map[int]string) ([]ifaddr, error) {
	for try := 1; ; try++ {
		req := h.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries {
			continue // something changed under the dump: it may lack an entry
		}
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		all := make([]ifaddr, 0, len(msgs))
		for _, m := range msgs {
			if a, ok := parseIfaddr(m); ok {
				a.link = names[a.index]
				all = append(all, a)
			}
		}
		return all, nil
	}
}

// parseIfaddr reads one RTM_NEWADDR body; false for other families or nonsense.
func parseIfaddr(b []byte) (ifaddr, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return ifaddr{}, false
	}
	msg := nl.DeserializeIfAddrmsg(b)
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return ifaddr{}, false
	}
	a := ifaddr{bits: int(msg.Prefixlen), index: int(msg.Index), scope: msg.Scope, flags: uint32(msg.Flags)}
	var address netip.Addr
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_LOCAL:
			a.addr, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_LABEL:
			a.label = nl.BytesToString(attr.Value)
		case unix.IFA_FLAGS:
			if len(attr.Value) == 4 {
				a.flags = binary.NativeEndian.Uint32(attr.Value)
			}
		case ifaProto:
			if len(attr.Value) == 1 {
				a.proto = attr.Value[0]
			}
		}
	}
	if !a.addr.IsValid() { // IPv6 without a peer has IFA_ADDRESS only
		a.addr = address
	}
	return a, a.addr.IsValid() && a.bits <= a.addr.BitLen()
}

// addition sets a as ours.
func (h *Host) addition(a ifaddr) *nl.NetlinkRequest {
	req := h.addressRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	// NOPREFIXROUTE: the address brings no route of its own, so that taking it
	// away takes none away. NODAD: the address moves between machines, and the
	// previous holder may still answer for a moment; waiting for duplicate
	// detection would add a second to every failover.
	flags := uint32(unix.IFA_F_NOPREFIXROUTE)
	if a.addr.Is6() {
		flags |= unix.IFA_F_NODAD
		req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, deprecatedForever()))
	}
	req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
	req.AddData(nl.NewRtAttr(ifaProto, nl.Uint8Attr(addrProto)))
	if label := labelFor(a.link); a.addr.Is4() && label != "" {
		req.AddData(nl.NewRtAttr(unix.IFA_LABEL, nl.ZeroTerminated(label)))
	}
	return req
}

// additionError words a refusal. An address that is there already is no error.
func additionError(a ifaddr, err error) error {
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w%s", a.prefix(), a.link, err, a.hint(err))
	}
	return nil
}

// hint says how to mend the two refusals that name a permission and a protocol
// but mean that IPv6 is off.
func (a ifaddr) hint(err error) string {
	switch {
	case a.addr.Is6() && errors.Is(err, unix.EACCES):
		return fmt.Sprintf(": IPv6 is off on the link: set net.ipv6.conf.%s.disable_ipv6=0", a.link)
	case a.addr.Is6() && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)):
		return ": the kernel was started without IPv6"
	}
	return ""
}

// deprecatedForever is struct ifa_cacheinfo of linux/if_addr.h with the
// lifetimes, in seconds, preferred 0 and valid without end. A deprecated address
// (RFC 4862 section 5.5.4) is answered for like any other, but no connection of
// the machine's own begins at it (RFC 6724 rule 3) while there is another. Without
// that a VIP would often be the best match for a neighbour, being a /128, and the
// node's own connections would break when the VIP moves.
func deprecatedForever() []byte {
	const preferred, valid = 0, 0xffffffff
	b := binary.NativeEndian.AppendUint32(nil, preferred)
	b = binary.NativeEndian.AppendUint32(b, valid)
	return append(b, make([]byte, 8)...) // when made and changed: the kernel's to say
}

// removal takes a away.
func (h *Host) removal(a ifaddr) *nl.NetlinkRequest { return h.addressRequest(unix.RTM_DELADDR, 0, a) }

// removalError words a refusal. An address that is gone already is no error.
func removalError(a ifaddr, err error) error {
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s from %s: %w", a.prefix(), a.link, err)
	}
	return nil
}

func (h *Host) addressRequest(kind, flags int, a ifaddr) *nl.NetlinkRequest {
	family := unix.AF_INET
	if a.addr.Is6() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Prefixlen = uint8(a.bits)
	msg.Scope = unix.RT_SCOPE_UNIVERSE
	msg.Index = uint32(a.index)
	req := h.request(kind, flags|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.addr.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.addr.AsSlice()))
	return req
}

func (h *Host) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: h.route}
	return req
}

// passing reports an IPv6 address that the kernel made for some time only (RFC
// 8981), or must not use: nothing may be built on it. (For IPv4 the first flag
// means a secondary address, which is as good as any.)
func (a ifaddr) passing() bool {
	return a.addr.Is6() && a.flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DADFAILED) != 0
}

// unsettled reports an IPv6 address that cannot be used yet, or should not be
// used any more.
func (a ifaddr) unsettled() bool {
	return a.addr.Is6() && a.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED) != 0
}

// unusable reports an address the kernel refuses to use, because duplicate
// detection found it elsewhere before Pontoon took it over.
func (a ifaddr) unusable() bool { return a.flags&unix.IFA_F_DADFAILED != 0 }
