package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Codes of NOTIFICATION messages (RFC 4271, section 4.5; RFC 4486; RFC 5492).
const (
	notifyHeader  = 1
	notifyOpen    = 2
	notifyUpdate  = 3
	notifyHold    = 4
	notifyFSM     = 5
	notifyCease   = 6
	notifyRefresh = 7
)

// notification is a NOTIFICATION message.
type notification struct {
	code, subcode uint8
	data          []byte
}

// ending is what is known of why a session ended, or did not come up.
type ending struct {
	established bool   // it had been
	opened      bool   // the neighbour's OPEN was seen
	openAS      uint32 // what it says it is
	sent, got   *notification
	kept        bool // its routes are, for the restart time
}

// words says in plain words why a session with p ended.
func (e ending) words(p BGPPeer) string {
	switch {
	case e.got != nil:
		return e.got.received(p)
	case e.sent != nil:
		return e.sent.said(p, e)
	case !e.opened:
		return "it closed the connection without a word: it may not know this node as a neighbour, or knows it by another address"
	case !e.established:
		return "it closed the connection while the session was being set up"
	case e.kept:
		return "the connection was lost; its routes are kept while it may be restarting"
	}
	return "the connection was lost"
}

// received is a notification from the neighbour.
func (n notification) received(p BGPPeer) string {
	switch n.code {
	case notifyOpen:
		switch n.subcode {
		case 1:
			return "it does not speak BGP version 4"
		case 2:
			return fmt.Sprintf("it refuses AS %d: it expects another AS of this node", p.LocalAS)
		case 3:
			return "it refuses this node's router id: is it used twice?"
		case 4, 7:
			return "it refuses a capability of this node: are the families of routes the same on both sides?"
		case 5:
			return "it refuses the authentication"
		case 6:
			return fmt.Sprintf("it refuses hold time %v", p.Hold)
		}
		return fmt.Sprintf("it refuses the session (OPEN error, subcode %d)", n.subcode)
	case notifyHold:
		return "it heard nothing from this node for its hold time"
	case notifyCease:
		return n.ceased()
	}
	return fmt.Sprintf("it closed the session with an error: %s, subcode %d", codeName(n.code), n.subcode)
}

// ceased is a Cease from the neighbour (RFC 4486, RFC 9003, RFC 9384).
func (n notification) ceased() string {
	what := fmt.Sprintf("it ended the session (cease, subcode %d)", n.subcode)
	switch n.subcode {
	case 1:
		what = "it received more prefixes than it allows"
	case 2:
		what = "it was shut down by its administrator"
	case 3:
		what = "this node was removed from its configuration"
	case 4:
		what = "its administrator reset the session"
	case 5:
		what = "it refuses connections from this node"
	case 6:
		what = "its configuration changed"
	case 7:
		what = "two connections collided"
	case 8:
		what = "it is out of resources"
	case 9:
		what = "it ended the session for good (hard reset)"
	case 10:
		what = "its BFD session with this node went down"
	}
	if n.subcode == 2 || n.subcode == 4 {
		if text := shutdownText(n.data); text != "" {
			what += ": " + text
		}
	}
	return what
}

// said is a notification this node sent.
func (n notification) said(p BGPPeer, e ending) string {
	switch n.code {
	case notifyOpen:
		switch n.subcode {
		case 2:
			return fmt.Sprintf("it is AS %d, and not AS %d", e.openAS, p.AS)
		case 3:
			return "its router id is this node's own, or none"
		case 6:
			return "its hold time is shorter than 3 s"
		}
		return fmt.Sprintf("its OPEN was refused (subcode %d)", n.subcode)
	case notifyHold:
		return "nothing was heard from it for the hold time"
	case notifyCease:
		if n.subcode == 1 {
			return fmt.Sprintf("it sent more than %d prefixes", p.MaxPrefixes)
		}
		return "this node ended the session"
	}
	return fmt.Sprintf("it sent what cannot be read: %s, subcode %d", codeName(n.code), n.subcode)
}

func codeName(code uint8) string {
	switch code {
	case notifyHeader:
		return "message header error"
	case notifyOpen:
		return "OPEN message error"
	case notifyUpdate:
		return "UPDATE message error"
	case notifyFSM:
		return "message at the wrong time"
	case notifyRefresh:
		return "ROUTE-REFRESH message error"
	}
	return fmt.Sprintf("code %d", code)
}

// shutdownText is the reason an administrator gave (RFC 9003, section 2), without
// what a terminal would take for more than text.
func shutdownText(data []byte) string {
	if len(data) == 0 || int(data[0]) > len(data)-1 {
		return ""
	}
	text := data[1 : 1+int(data[0])]
	if !utf8.Valid(text) {
		return ""
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, string(text)))
}

// dialWords says in plain words why no connection to p could be opened.
func dialWords(p BGPPeer, err error) string {
	to := netip.AddrPortFrom(p.Address, p.Port)
	distant := ""
	if p.external() && p.Multihop == 0 && !p.TTLSecurity {
		distant = ", or it is not on a link of this node (multihop)"
	}
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Sprintf("connection refused by %v: no BGP listens there, or not for this node", to)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return fmt.Sprintf("no route to %v: nothing answers at that address%s", p.Address, distant)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("source address %v is not an address of this node", p.Source)
	case errors.Is(err, unix.ETIMEDOUT), errors.As(err, &timeout) && timeout.Timeout():
		hint := ""
		switch {
		case p.Password != "":
			hint = ": the password may differ, or it is out of reach"
		case p.TTLSecurity:
			hint = ": it may not use TTL security, or be out of reach"
		default:
			hint = ": it is out of reach, or expects a password"
		}
		return fmt.Sprintf("no answer from %v%s%s", to, hint, distant)
	case errors.Is(err, unix.ECONNRESET):
		return fmt.Sprintf("%v closed the connection at once", to)
	}
	return fmt.Sprintf("cannot connect to %v: %v", to, err)
}

// Types of messages (RFC 4271, section 4.1).
const (
	headerLen        = 19
	typeOpen         = 1
	typeNotification = 3
	maxKept          = 4096
)

// transcript follows one direction of a session's bytes and keeps what explains an
// end: OPEN and NOTIFICATION. It trusts nothing of what it reads.
type transcript struct {
	head [headerLen]byte
	have int // of the header
	left int // of the body
	kept []byte
	keep bool
	lost bool // the bytes are no BGP messages any more

	open     bool
	openAS   uint32
	notified *notification
}

// add takes the next bytes.
func (t *transcript) add(b []byte) {
	for len(b) > 0 && !t.lost {
		if t.have < headerLen {
			n := copy(t.head[t.have:], b)
			t.have += n
			b = b[n:]
			if t.have < headerLen {
				return
			}
			length := int(binary.BigEndian.Uint16(t.head[16:18]))
			if length < headerLen {
				t.lost = true
				return
			}
			t.left, t.kept = length-headerLen, nil
			kind := t.head[18]
			t.keep = (kind == typeOpen || kind == typeNotification) && t.left <= maxKept
		}
		n := min(t.left, len(b))
		if t.keep {
			t.kept = append(t.kept, b[:n]...)
		}
		b, t.left = b[n:], t.left-n
		if t.left == 0 {
			t.message()
			t.have = 0
		}
	}
}

// message takes in a whole message.
func (t *transcript) message() {
	switch {
	case !t.keep:
	case t.head[18] == typeOpen && len(t.kept) >= 10:
		t.open, t.openAS = true, openAS(t.kept)
	case t.head[18] == typeNotification && len(t.kept) >= 2:
		t.notified = &notification{code: t.kept[0], subcode: t.kept[1], data: t.kept[2:]}
	}
	t.kept = nil
}

// openAS is the AS number of an OPEN: that of the capability of four octets (RFC
// 6793, section 4.1; code 65), or else the field of two (RFC 4271, section 4.2).
func openAS(body []byte) uint32 {
	as := uint32(binary.BigEndian.Uint16(body[1:3]))
	params := body[10:]
	wide := len(params) >= 3 && params[0] == 255 && body[9] == 255 // RFC 9072
	if wide {
		params = params[3:]
	}
	for len(params) >= 2 {
		kind, n, rest := params[0], int(params[1]), params[2:]
		if wide {
			if len(params) < 3 {
				break
			}
			n, rest = int(binary.BigEndian.Uint16(params[1:3])), params[3:]
		}
		if n > len(rest) {
			break
		}
		if kind == 2 {
			for caps := rest[:n]; len(caps) >= 2 && int(caps[1]) <= len(caps)-2; caps = caps[2+int(caps[1]):] {
				if caps[0] == 65 && caps[1] == 4 {
					return binary.BigEndian.Uint32(caps[2:6])
				}
			}
		}
		params = rest[n:]
	}
	return as
}
