package announce

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	testMAC = mac{0x02, 0, 0, 0, 0, 0x0a}
	testVIP = netip.MustParseAddr("192.0.2.200")
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	//           destination  source       type hw   proto l l  op   sender hw    sender ip target hw    target ip
	requestHex = "ffffffffffff 02000000000a 0806 0001 0800 06 04 0001 02000000000a c00002c8 000000000000 c00002c8"
	replyHex   = "ffffffffffff 02000000000a 0806 0001 0800 06 04 0002 02000000000a c00002c8 02000000000a c00002c8"
)

func TestGratuitousFormsByteForByte(t *testing.T) {
	frames := gratuitous(testMAC, testVIP)
	for i, want := range []string{requestHex, replyHex} {
		got := frames[i].append(nil)
		if !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("form %d:\n got %x\nwant %s", i, got, want)
		}
		back, err := parseARP(append(got, make([]byte, 18)...)) // padded to the minimum
		if err != nil || back != frames[i] {
			t.Errorf("parsed back: %+v, %v", back, err)
		}
	}
}

func TestFramesAgreeWithAnotherDecoder(t *testing.T) {
	for _, f := range gratuitous(testMAC, testVIP) {
		p := gopacket.NewPacket(f.append(nil), layers.LayerTypeEthernet, gopacket.Default)
		arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if !ok {
			t.Fatalf("no ARP: %v", p)
		}
		if arp.Operation != f.op || !bytes.Equal(arp.SourceHwAddress, testMAC[:]) ||
			!bytes.Equal(arp.SourceProtAddress, testVIP.AsSlice()) || !bytes.Equal(arp.DstProtAddress, testVIP.AsSlice()) {
			t.Errorf("got %+v", arp)
		}
	}
}

func TestParseRefusesWhatIsNotARPForIPv4(t *testing.T) {
	good := unhex(t, requestHex)
	for name, change := range map[string]func([]byte) []byte{
		"short":           func(b []byte) []byte { return b[:frameLen-1] },
		"empty":           func([]byte) []byte { return nil },
		"ether type":      func(b []byte) []byte { b[13] = 0; return b },
		"hardware type":   func(b []byte) []byte { b[15] = 6; return b },
		"protocol type":   func(b []byte) []byte { b[16] = 0x86; return b },
		"hardware length": func(b []byte) []byte { b[18] = 8; return b },
		"protocol length": func(b []byte) []byte { b[19] = 16; return b },
	} {
		if f, err := parseARP(change(bytes.Clone(good))); !errors.Is(err, errNotARP) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
}

func FuzzParseARP(f *testing.F) {
	f.Add(unhex(f, requestHex))
	f.Add(unhex(f, replyHex))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := parseARP(b)
		if err != nil {
			return
		}
		if got := frame.append(nil); !bytes.Equal(got, b[:frameLen]) {
			t.Errorf("%x encodes to %x", b[:frameLen], got)
		}
	})
}
