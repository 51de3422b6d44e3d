package announce

import (
	"net/netip"
)

// protocol is the way in which addresses of one family are announced.
type protocol uint8

const (
	arp protocol = iota // IPv4
	ndp                 // IPv6
)

// lane is one protocol on one link. Each has a port of its own.
type lane struct {
	link  string
	proto protocol
}

// target is what an announcement is about.
type target struct {
	addr netip.Addr
	link string
}

func (t target) lane() lane { return laneOf(t.addr, t.link) }

func laneOf(addr netip.Addr, link string) lane {
	if addr.Is4() {
		return lane{link: link, proto: arp}
	}
	return lane{link: link, proto: ndp}
}

// claim says that somebody calls an address its own.
type claim struct {
	addr netip.Addr
	hw   mac
}

func (p protocol) String() string {
	if p == arp {
		return "arp"
	}
	return "ndp"
}

// frames are the frames that make one announcement.
func (p protocol) frames(hw mac, addr netip.Addr, router bool) [][]byte {
	if p == ndp {
		return [][]byte{appendAdvertisement(nil, hw, addr, router)}
	}
	forms := gratuitous(hw, addr)
	return [][]byte{forms[0].append(nil), forms[1].append(nil)}
}

// parse reads the claim in a received frame.
func (p protocol) parse(frame []byte) (claim, error) {
	if p == ndp {
		return parseNDP(frame)
	}
	f, err := parseARP(frame)
	return claim{addr: f.senderIP, hw: f.senderHW}, err
}

// announceable reports whether addr can be announced on a link at all.
func announceable(addr netip.Addr) bool {
	return addr.IsValid() && !addr.IsUnspecified() && !addr.IsMulticast() && !addr.IsLoopback()
}
