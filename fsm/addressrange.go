package fsm

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// AddressRange is the addresses from First to Last, both included and of one
// family. Its text, also in JSON, is "192.0.2.10-192.0.2.20", or one address
// alone. The zero value is no range.
type AddressRange struct {
	First, Last netip.Addr
}

// maxRangeSize is what the size of a longer range is said to be: the greatest
// number up to which all JSON readers tell whole numbers apart (RFC 8259, 6).
const maxRangeSize = 1<<53 - 1

// ParseAddressRange reads the text form of a range. IPv4 addresses in IPv6 form
// are unmapped; an address with a zone is an error, and so is a range that ends
// before it begins.
func ParseAddressRange(s string) (AddressRange, error) {
	first, last, two := strings.Cut(s, "-")
	if !two {
		last = first
	}
	r := AddressRange{}
	for _, end := range []struct {
		text string
		into *netip.Addr
	}{{first, &r.First}, {last, &r.Last}} {
		a, err := netip.ParseAddr(strings.TrimSpace(end.text))
		if err != nil || a.Zone() != "" {
			return AddressRange{}, fmt.Errorf("%s is no range of addresses: want one like 192.0.2.10-192.0.2.20", shown(s))
		}
		*end.into = a.Unmap()
	}
	switch {
	case r.First.Is4() != r.Last.Is4():
		return AddressRange{}, fmt.Errorf("%s begins in one IP family and ends in the other", shown(s))
	case r.Last.Less(r.First):
		return AddressRange{}, fmt.Errorf("%s ends before it begins", shown(s))
	}
	return r, nil
}

// rangeOf is all addresses of a prefix; none of one that is not valid.
func rangeOf(p netip.Prefix) AddressRange {
	if !p.IsValid() {
		return AddressRange{}
	}
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	end, _ := netip.AddrFromSlice(last) // it has the length of an address
	return AddressRange{p.Addr(), end}
}

// String returns the text form; "" for the zero value.
func (r AddressRange) String() string {
	switch {
	case r == AddressRange{}:
		return ""
	case r.First == r.Last:
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// MarshalText returns the text form.
func (r AddressRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text form.
func (r *AddressRange) UnmarshalText(b []byte) error {
	read, err := ParseAddressRange(string(b))
	if err != nil {
		return err
	}
	*r = read
	return nil
}

// Contains tells whether an address is in the range.
func (r AddressRange) Contains(a netip.Addr) bool {
	a = a.Unmap()
	return a.Is4() == r.First.Is4() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r AddressRange) overlaps(o AddressRange) bool {
	return r.First.Is4() == o.First.Is4() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

// size is the number of addresses, at most maxRangeSize.
func (r AddressRange) size() uint64 {
	first, last := r.First.As16(), r.Last.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:]), 0)
	high, _ := bits.Sub64(binary.BigEndian.Uint64(last[:8]), binary.BigEndian.Uint64(first[:8]), borrow)
	if high != 0 || low >= maxRangeSize {
		return maxRangeSize
	}
	return low + 1
}

func compareRanges(a, b AddressRange) int {
	if c := a.First.Compare(b.First); c != 0 {
		return c
	}
	return a.Last.Compare(b.Last)
}

// inRanges looks an address up in ranges that are sorted and apart.
func inRanges(sorted []AddressRange, a netip.Addr) bool {
	i, exact := slices.BinarySearchFunc(sorted, a, func(r AddressRange, a netip.Addr) int { return r.First.Compare(a) })
	return exact || i > 0 && sorted[i-1].Contains(a)
}
