package bpf

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"
)

// rangePrefixBits is how many bits of a range key come before its port: address, protocol, padding.
const rangePrefixBits = 128 + 8 + 8

// ranged tells whether the service has more than one port.
func (s Service) ranged() bool { return s.PortEnd != 0 && s.PortEnd != s.VIP.Port() }

// portPrefix is 2^(16-length) ports that share their first length bits.
type portPrefix struct {
	port   uint16
	length int
}

// portPrefixes covers the ports from first to last with the fewest prefixes, at most 30.
func portPrefixes(first, last uint16) []portPrefix {
	var out []portPrefix
	for at, end := uint32(first), uint32(last)+1; at < end; {
		size := uint32(1) << min(bits.TrailingZeros32(at|1<<16), bits.Len32(end-at)-1)
		out = append(out, portPrefix{uint16(at), 16 - bits.TrailingZeros32(size)})
		at += size
	}
	return out
}

// rangeKeys are the entries by which some ports of an address are found.
func rangeKeys(addr netip.Addr, protocol uint8, first, last uint16) []pontoonRangeKey {
	var keys []pontoonRangeKey
	a := addr.As16()
	for _, p := range portPrefixes(first, last) {
		key := pontoonRangeKey{PrefixLen: uint32(rangePrefixBits + p.length), Proto: protocol, Port: swap16(p.port)}
		for i := range key.Vip {
			key.Vip[i] = uint32(a[4*i]) | uint32(a[4*i+1])<<8 | uint32(a[4*i+2])<<16 | uint32(a[4*i+3])<<24
		}
		keys = append(keys, key)
	}
	return keys
}

// syncRanges makes the map of ranges say which services have several ports.
func (t *tables) syncRanges(services []Service) error {
	want := map[pontoonRangeKey]pontoonRange{}
	for _, s := range services {
		if !s.ranged() {
			continue
		}
		for _, key := range rangeKeys(s.VIP.Addr(), s.Protocol, s.VIP.Port(), s.PortEnd) {
			want[key] = pontoonRange{FirstPort: swap16(s.VIP.Port())}
		}
	}
	return syncMap(t.maps.Ranges, "port range", t.ranges, want)
}

// syncMap makes a map hold what is wanted. have is what it holds, and is kept up.
func syncMap[K, V comparable](m *ebpf.Map, what string, have, want map[K]V) error {
	var errs []error
	for key, value := range want {
		if there, ok := have[key]; ok && there == value {
			continue
		}
		if err := m.Put(key, value); err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", what, roomFor(what, m, err)))
			continue
		}
		have[key] = value
	}
	for key := range have {
		if _, ok := want[key]; ok {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove %s: %w", what, err))
			continue
		}
		delete(have, key)
	}
	return errors.Join(errs...)
}
