package fsm

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// MaxName is the greatest length of a name in bytes.
const MaxName = 63

const (
	lowerNameRule = "must be 1 to 63 of a-z 0-9 . _ - and start and end with a letter or digit"
	nodeNameRule  = "must be 1 to 63 of A-Z a-z 0-9 . _ - and start and end with a letter or digit"
)

func validName(s string, upper bool) bool {
	if len(s) == 0 || len(s) > MaxName {
		return false
	}
	for i := range len(s) {
		b := s[i]
		switch {
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9', upper && b >= 'A' && b <= 'Z':
		case b == '.' || b == '_' || b == '-':
			if i == 0 || i == len(s)-1 {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func (c *checker) name(field, value string) {
	if !validName(value, false) {
		c.bad(field, value, lowerNameRule)
	}
}

func (c *checker) nodeName(field string, value NodeID) {
	if !validName(string(value), true) {
		c.bad(field, value, nodeNameRule)
	}
}

// oneOf checks a value against the few it may have.
func oneOf[T ~string](c *checker, field string, value T, allowed ...T) {
	if slices.Contains(allowed, value) {
		return
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	c.bad(field, string(value), "must be %s", strings.Join(words, " or "))
}

// address checks an address that packets are to be sent to or from. It is
// unmapped already: one form for each address.
func (c *checker) address(field string, a netip.Addr) bool {
	switch {
	case !a.IsValid():
		c.bad(field, nil, "is missing: give an address like 192.0.2.10 or 2001:db8::10")
	case a.Zone() != "":
		c.bad(field, a, "has a zone, which means something on one machine only: give an address of global scope")
	case a.IsUnspecified():
		c.bad(field, a, "is the unspecified address: give the address of one host")
	case a.IsLoopback():
		c.bad(field, a, "is a loopback address, which no other machine can reach")
	case a.IsMulticast():
		c.bad(field, a, "is a multicast address: give the address of one host")
	case a.Is6() && a.IsLinkLocalUnicast():
		c.bad(field, a, "is a link-local address, which means something on one link only: give an address of global scope")
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		c.bad(field, a, "is the broadcast address: give the address of one host")
	default:
		return true
	}
	return false
}

// span checks a duration against its bounds.
func (c *checker) span(field string, d, least, most Duration) {
	if d < least || d > most {
		c.bad(field, d, "must be %s to %s", shortSpan(least), shortSpan(most))
	}
}

// shortSpan leaves out the zeros of a bound: "1h" and not "1h0m0s".
func shortSpan(d Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// instant returns the one form the state keeps of an instant. One that JSON
// cannot say is refused.
func (c *checker) instant(field string, t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	t = t.UTC().Truncate(time.Microsecond)
	if t.Year() < 1970 || t.Year() > 9999 {
		c.bad(field, nil, "is in the year %d: want one from 1970 to 9999", t.Year())
	}
	return t
}

func (c *checker) port(field string, port uint16) {
	if port == 0 {
		c.bad(field, port, "must be 1 to 65535")
	}
}

func validInterface(s string) bool {
	if len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for _, b := range []byte(s) {
		if b <= ' ' || b > '~' || b == '/' || b == ':' || b == '"' {
			return false
		}
	}
	return true
}
