package announce

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"
)

var testVIP6 = netip.MustParseAddr("2001:db8::200")

const (
	//               destination  source       type version  len  nh hl
	advertisementHex = "333300000001 02000000000a 86dd 60000000 0020 3a ff" +
		// source                          destination
		"20010db8000000000000000000000200 ff020000000000000000000000000001" +
		// type code sum flags    target                           option
		"88 00 SUM FLAGS 20010db8000000000000000000000200 0201 02000000000a"
)

// solicitation is what somebody sends who looks for asked, from an address of its own.
func solicitation(hw mac, from, asked netip.Addr) []byte {
	b := appendAdvertisement(nil, hw, asked, false)
	src := from.As16()
	copy(b[ipv6SourceAt:], src[:])
	b[icmpAt], b[icmpFlagsAt] = typeSolicit, 0
	b[ndpOptionsAt] = optSourceHW
	return resum(b)
}

// resum puts the right checksum into a frame that was changed.
func resum(b []byte) []byte {
	binary.BigEndian.PutUint16(b[18:], uint16(len(b)-icmpAt))
	binary.BigEndian.PutUint16(b[icmpChecksumAt:], 0)
	binary.BigEndian.PutUint16(b[icmpChecksumAt:], ^icmpSum(b))
	return b
}

func TestAdvertisementByteForByte(t *testing.T) {
	// The sums were computed by hand: all 16-bit words of both addresses, the
	// length 32, the protocol 58 and the message.
	for flags, sum := range map[string]string{"20000000": "f523", "a0000000": "7523"} {
		got := appendAdvertisement([]byte("before"), testMAC, testVIP6, flags == "a0000000")[len("before"):]
		want := unhex(t, strings.NewReplacer("SUM", sum, "FLAGS", flags).Replace(advertisementHex))
		if !bytes.Equal(got, want) {
			t.Errorf("flags %s:\n got %x\nwant %x", flags, got, want)
		}
		c, err := parseNDP(append(got, 0, 0)) // with padding
		if err != nil || c != (claim{addr: testVIP6, hw: testMAC}) {
			t.Errorf("parsed back: %+v, %v", c, err)
		}
	}
}

func TestAdvertisementAgreesWithAnotherEncoder(t *testing.T) {
	eth := &layers.Ethernet{
		SrcMAC: testMAC[:], DstMAC: allNodesMAC[:], EthernetType: layers.EthernetTypeIPv6,
	}
	ip := &layers.IPv6{
		Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6,
		SrcIP: testVIP6.AsSlice(), DstIP: allNodes.AsSlice(),
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typeAdvertise, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	na := &layers.ICMPv6NeighborAdvertisement{
		Flags: 0xa0, TargetAddress: testVIP6.AsSlice(),
		Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: testMAC[:]}},
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, icmp, na)
	if err != nil {
		t.Fatal(err)
	}
	if got := appendAdvertisement(nil, testMAC, testVIP6, true); !bytes.Equal(got, buf.Bytes()) {
		t.Errorf("\n got %x\nwant %x", got, buf.Bytes())
	}
}

func TestClaimsInNDPFrames(t *testing.T) {
	asker, unspecified := netip.MustParseAddr("2001:db8::5"), netip.IPv6Unspecified()
	other := mac{2, 9, 9, 9, 9, 9}
	na := appendAdvertisement(nil, other, testVIP6, false)
	withOption := func(kind byte) []byte {
		b := slices.Insert(slices.Clone(na), ndpOptionsAt, kind, 1, 1, 2, 3, 4, 5, 6)
		return resum(b)
	}
	for name, tc := range map[string]struct {
		frame []byte
		want  claim
	}{
		"advertisement":                {na, claim{testVIP6, other}},
		"behind an unknown option":     {withOption(14), claim{testVIP6, other}},
		"first of two options":         {withOption(optTargetHW), claim{testVIP6, mac{1, 2, 3, 4, 5, 6}}},
		"without an option":            {resum(slices.Clone(na[:ndpOptionsAt])), claim{testVIP6, other}},
		"solicitation":                 {solicitation(other, asker, testVIP6), claim{asker, other}},
		"solicitation without option":  {resum(solicitation(other, asker, testVIP6)[:ndpOptionsAt]), claim{}},
		"probe before taking the VIP":  {solicitation(other, unspecified, testVIP6), claim{}},
		"advertisement from no source": {resum(func() []byte { b := slices.Clone(na); clear(b[ipv6SourceAt:ipv6DestAt]); return b }()), claim{}},
	} {
		if got, err := parseNDP(tc.frame); err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
}

func TestInvalidNDPFramesAreRefused(t *testing.T) {
	good := appendAdvertisement(nil, testMAC, testVIP6, true)
	with := func(at int, v byte) []byte { b := slices.Clone(good); b[at] = v; return b }
	for name, frame := range map[string][]byte{
		"empty":                  nil,
		"short":                  good[:ndpOptionsAt-1],
		"cut in the option":      good[:len(good)-1],
		"another ether type":     with(12, 0x08),
		"another next header":    with(nextHeaderAt, 17),
		"through a router":       resum(with(nextHeaderAt+1, 254)),
		"another type":           resum(with(icmpAt, 134)),
		"a code":                 resum(with(icmpAt+1, 1)),
		"wrong sum":              with(icmpChecksumAt, good[icmpChecksumAt]+1),
		"option without length":  resum(with(ndpOptionsAt+1, 0)),
		"option beyond the end":  resum(with(ndpOptionsAt+1, 2)),
		"payload below a header": with(19, 20),
	} {
		if c, err := parseNDP(frame); err == nil {
			t.Errorf("%s: parsed as %+v", name, c)
		}
	}
}

func FuzzParseNDP(f *testing.F) {
	f.Add(appendAdvertisement(nil, testMAC, testVIP6, true))
	f.Add(solicitation(testMAC, testVIP6, testVIP6))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseNDP(b)
		if err != nil && c != (claim{}) {
			t.Errorf("claim %+v beside %v", c, err)
		}
	})
}

func TestFilterPassesNeighbourDiscoveryOnly(t *testing.T) {
	raw, err := ndpFilter()
	if err != nil {
		t.Fatal(err)
	}
	program, _ := bpf.Disassemble(raw)
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	good := appendAdvertisement(nil, testMAC, testVIP6, true)
	with := func(at int, v byte) []byte { b := slices.Clone(good); b[at] = v; return b }
	for name, tc := range map[string]struct {
		frame []byte
		pass  bool
	}{
		"advertisement":        {good, true},
		"solicitation":         {with(icmpAt, typeSolicit), true},
		"echo request":         {with(icmpAt, 128), false},
		"router advertisement": {with(icmpAt, 134), false},
		"redirect":             {with(icmpAt, 137), false},
		"TCP":                  {with(nextHeaderAt, 6), false},
	} {
		if n, err := vm.Run(tc.frame); err != nil || (n >= len(tc.frame)) != tc.pass {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}
