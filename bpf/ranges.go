package bpf

import (
	"errors"
	"fmt"
	"math/bits"

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

// rangeKeys are the entries by which a service of several ports is found.
func rangeKeys(s Service) []pontoonRangeKey {
	var keys []pontoonRangeKey
	vip := s.VIP.Addr().As16()
	for _, p := range portPrefixes(s.VIP.Port(), s.PortEnd) {
		key := pontoonRangeKey{PrefixLen: uint32(rangePrefixBits + p.length), Proto: s.Protocol, Port: swap16(p.port)}
		for i := range key.Vip {
			key.Vip[i] = uint32(vip[4*i]) | uint32(vip[4*i+1])<<8 | uint32(vip[4*i+2])<<16 | uint32(vip[4*i+3])<<24
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
		for _, key := range rangeKeys(s) {
			want[key] = pontoonRange{FirstPort: swap16(s.VIP.Port())}
		}
	}
	var errs []error
	for key, value := range want {
		if have, ok := t.ranges[key]; ok && have == value {
			continue
		}
		if err := t.maps.Ranges.Put(key, value); err != nil {
			errs = append(errs, fmt.Errorf("write port range: %w", roomFor("port range", t.maps.Ranges, err)))
			continue
		}
		t.ranges[key] = value
	}
	for key := range t.ranges {
		if _, ok := want[key]; ok {
			continue
		}
		if err := t.maps.Ranges.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove port range: %w", err))
			continue
		}
		delete(t.ranges, key)
	}
	return errors.Join(errs...)
}
