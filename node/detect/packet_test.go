package detect

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func aPacket() Packet {
	return Packet{State: Up, DetectMult: 3, MyDiscr: 7, YourDiscr: 9, DesiredMinTx: 50 * time.Millisecond, RequiredMinRx: 60 * time.Millisecond}
}

func TestPacketHasTheRFCsLayout(t *testing.T) {
	p := aPacket()
	p.Diag, p.Poll, p.ControlPlaneIndep = DiagExpired, true, true
	want := []byte{
		0x21, 0xe8, 3, 24, 0, 0, 0, 7, 0, 0, 0, 9,
		0, 0, 0xc3, 0x50, 0, 0, 0xea, 0x60, 0, 0, 0, 0,
	}
	if diff := cmp.Diff(want, p.Append(nil)); diff != "" {
		t.Fatal(diff)
	}
}

func TestParsedPacketIsTheOneThatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		interval := rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Uint32().Draw(t, "us")) * time.Microsecond
		})
		p := Packet{
			Diag: Diag(rapid.IntRange(0, 31).Draw(t, "diag")), State: State(rapid.IntRange(0, 3).Draw(t, "state")),
			Poll: rapid.Bool().Draw(t, "poll"), ControlPlaneIndep: rapid.Bool().Draw(t, "cpi"), Demand: rapid.Bool().Draw(t, "demand"),
			DetectMult: rapid.Uint8Min(1).Draw(t, "mult"), MyDiscr: rapid.Uint32Min(1).Draw(t, "my"), YourDiscr: rapid.Uint32Min(1).Draw(t, "your"),
			DesiredMinTx: interval.Draw(t, "tx"), RequiredMinRx: interval.Draw(t, "rx"), RequiredMinEchoRx: interval.Draw(t, "echo"),
		}
		got, err := ParsePacket(p.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// Each row breaks one rule of RFC 5880, 6.8.6.
func TestBadPacketsAreRefused(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"too short":                             func(b []byte) []byte { return b[:23] },
		"version":                               func(b []byte) []byte { b[0] = 2<<5 | b[0]&31; return b },
		"length field too small":                func(b []byte) []byte { b[3] = 23; return b },
		"length field too small for auth":       func(b []byte) []byte { b[1] |= bitAuth; b[3] = 25; return append(b, 0, 0) },
		"length field beyond the packet":        func(b []byte) []byte { b[3] = 25; return b },
		"detect multiplier zero":                func(b []byte) []byte { b[2] = 0; return b },
		"multipoint":                            func(b []byte) []byte { b[1] |= bitMultipoint; return b },
		"my discriminator zero":                 func(b []byte) []byte { copy(b[4:8], make([]byte, 4)); return b },
		"your discriminator zero in state up":   func(b []byte) []byte { copy(b[8:12], make([]byte, 4)); return b },
		"your discriminator zero in state init": func(b []byte) []byte { copy(b[8:12], make([]byte, 4)); b[1] = byte(Init) << 6; return b },
		"poll and final":                        func(b []byte) []byte { b[1] |= bitPoll | bitFinal; return b },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePacket(damage(aPacket().Append(nil))); !errors.Is(err, ErrPacket) {
				t.Fatalf("ParsePacket: %v", err)
			}
		})
	}
	p := aPacket()
	p.YourDiscr, p.State = 0, Down
	if _, err := ParsePacket(p.Append(nil)); err != nil {
		t.Fatalf("the first packet of a neighbour: %v", err)
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add(aPacket().Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePacket(b)
		if err != nil {
			return
		}
		again, err := ParsePacket(p.Append(nil))
		if p.Authenticated {
			return // the section itself is not kept
		}
		if err != nil || again != p {
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}
