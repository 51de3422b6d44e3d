package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// pieces cuts a packet into fragments whose payloads are size bytes, a multiple of eight.
func pieces(f bpftest.Frame, id uint32, size int) []bpftest.Frame {
	var out []bpftest.Frame
	for at := 0; at < len(f.L4); at += size {
		piece := f
		piece.ID, piece.Offset = id, at
		piece.More = at+size < len(f.L4)
		piece.L4 = f.L4[at:min(at+size, len(f.L4))]
		out = append(out, piece)
	}
	return out
}

// whole puts the payloads of fragments together again.
func (d *duo) whole(frames [][]byte) (bpftest.Layers, []byte) {
	d.tb.Helper()
	var first bpftest.Layers
	var all []byte
	for i, frame := range frames {
		l := d.layers(frame)
		if i == 0 {
			first = l
		} else if l.Src != first.Src || l.Dst != first.Dst || l.TTL != first.TTL {
			d.tb.Fatalf("fragment %d goes %s -> %s, the first %s -> %s", i, l.Src, l.Dst, first.Src, first.Dst)
		}
		all = append(all, l.L4...)
	}
	return first, all
}

func TestFragmentsFollowTheirFirst(t *testing.T) {
	for _, f := range families {
		for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT, ModeDSR} {
			t.Run(f.name+" "+mode.String(), func(t *testing.T) {
				d := newDuo(t, f, nil)
				d.serve(mode, protoUDP)
				seen := d.open(protoUDP, d.clientPort())
				asked := ports{d.clientPort(), d.vipPort()}
				rows := []struct {
					fromClient bool
					in, want   ports
				}{{true, asked, seen}, {false, seen.turned(), asked.turned()}}
				if mode == ModeDSR {
					rows = rows[:1]
				}
				for i, row := range rows {
					payload := bytes.Repeat([]byte("fragmented "), 200)
					var out [][]byte
					for _, piece := range pieces(row.in.frame(protoUDP, 0, payload), uint32(100+i), 800) {
						action, frame := d.send(row.fromClient, piece)
						if action != actRedirect {
							t.Fatalf("at %d: action %d, drops %v", piece.Offset, action, d.Stats().Drops)
						}
						out = append(out, frame)
					}
					l, all := d.whole(out)
					want := row.want.frame(protoUDP, 0, payload)
					if l.Src != want.Src || l.Dst != want.Dst || !bytes.Equal(all, want.L4) {
						t.Errorf("%s -> %s, want %s -> %s; payload the same: %t", l.Src, l.Dst, want.Src, want.Dst, bytes.Equal(all, want.L4))
					}
				}
				if n := d.Stats().Counters["fragment"]; n != uint64(2*len(rows)) {
					t.Errorf("%d later fragments counted", n)
				}
			})
		}
	}
}

func TestFragmentsOutOfTheOrdinary(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			d := newDuo(t, f, nil)
			tcp, udp := d.serve(ModeFullNAT, protoTCP), d.serve(ModeFullNAT, protoUDP)
			tcp.ID, tcp.VIP, tcp.Protocol = 8, d.vipPort(), protoTCP
			d.configure(tcp, udp)
			asked := ports{d.clientPort(), d.vipPort()}
			all := pieces(asked.frame(protoUDP, 0, make([]byte, 1000)), 7, 400)
			// A later one that comes before its first is not known to anybody.
			if action, _ := d.send(true, all[1]); action != actDrop {
				t.Errorf("later fragment first: action %d", action)
			}
			d.expectDrops(t, "fragment", 1)
			// Two clients may use the same identification.
			other := ports{asked.src, asked.dst}
			other.src = netip.AddrPortFrom(d.other, 40001)
			d.send(true, all[0])
			_, first := d.send(true, pieces(other.frame(protoUDP, 0, make([]byte, 1000)), 7, 400)[0])
			_, mine := d.send(true, all[2])
			_, theirs := d.send(true, pieces(other.frame(protoUDP, 0, make([]byte, 1000)), 7, 400)[2])
			if a, b := d.layers(mine), d.layers(theirs); a.Dst != d.endpoint1.Addr() || b.Dst != d.endpoint1.Addr() || len(first) == 0 {
				t.Errorf("sent to %s and %s", a.Dst, b.Dst)
			}
			// RFC 1858: one that overlays the TCP flags, and a first one that does not have them.
			overlay := asked.frame(protoTCP, bpftest.SYN, make([]byte, 64))
			overlay.ID, overlay.Offset, overlay.L4 = 9, 8, overlay.L4[8:]
			short := asked.frame(protoTCP, bpftest.SYN, nil)
			short.ID, short.More, short.L4 = 10, true, short.L4[:16]
			cut := asked.frame(protoTCP, bpftest.SYN, nil)
			cut.ID, cut.More, cut.L4 = 11, true, append([]byte{}, cut.L4...)
			cut.L4[12] = 15 << 4 // a header of 60 bytes
			for i, in := range []bpftest.Frame{overlay, short, cut} {
				action, _ := d.send(true, in)
				if action != actDrop || d.drops("malformed") != uint64(i)+1 {
					t.Errorf("row %d: action %d, drops %v", i, action, d.Stats().Drops)
				}
			}
		})
	}
}

// A datagram of 20 kB crosses links of 1500 bytes in fragments, both ways.
func TestRealLargeDatagramIsAnswered(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		l := newLab(t, false, 1)
		l.echoUDP()
		d := l.open(0, nil)
		l.sync(d, mode, protoUDP)
		c, err := l.client.Dial(&net.Dialer{}, "udp4", vipPort.String())
		if err != nil {
			t.Fatal(err)
		}
		message := bytes.Repeat([]byte("a large datagram "), 20000/17)
		eventually(t, mode.String(), func() error { return exchange(c, message) })
		if n := d.Stats().Counters["fragment"]; n < 26 {
			t.Errorf("%s: %d later fragments", mode, n)
		}
	}
}

// exchange sends a message and demands it back.
func exchange(c net.Conn, message []byte) error {
	if _, err := c.Write(message); err != nil {
		return err
	}
	answer := make([]byte, len(message)+1)
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := c.Read(answer)
	if err == nil && !bytes.Equal(answer[:n], message) {
		err = fmt.Errorf("answer of %d bytes differs", n)
	}
	return err
}

// The datagram comes with a partial checksum from the client's own socket; the error that quotes
// it must be right all the same.
func TestRealClientOfADoomedFlowIsRefused(t *testing.T) {
	l := newLab(t, false, 1)
	l.echoUDP()
	d := l.open(0, nil)
	l.sync(d, ModeFullNAT, protoUDP)
	c, err := l.client.Dial(&net.Dialer{}, "udp4", vipPort.String())
	if err != nil {
		t.Fatal(err)
	}
	message := bytes.Repeat([]byte("odd"), 33)
	eventually(t, "echo", func() error { return exchange(c, message) })
	duo := &duo{bench: &bench{Dataplane: d, tb: t}}
	duo.doom()
	eventually(t, "refusal", func() error {
		if err := exchange(c, message); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("got %w", errors.Join(errors.New("no refusal"), err))
		}
		return nil
	})
}

// Behind a router with a smaller MTU the endpoint must hear of it, or large answers never arrive.
func TestRealPathMTUIsFound(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t, false, 1)
			l.serve()
			far := bpftest.NewNS(t)
			down, up := bpftest.Veth(l.client, "down", far, "eth1")
			down.Address("10.7.0.1/24")
			up.Address("10.7.0.2/24")
			far.DefaultRoute("10.7.0.1")
			down.Route("10.7.0.2/32", "", 1280)
			l.lbs[0].Lookup("eth1").Route("10.7.0.0/24", client.String(), 0)
			d := l.open(0, nil)
			runDataplane(t, d)
			l.sync(d, mode, protoTCP)
			c, err := far.Dial(&net.Dialer{Timeout: 5 * time.Second}, "tcp4", vipPort.String())
			if err != nil {
				t.Fatal(err)
			}
			if err := transfer(c, 4<<20, nil); err != nil {
				t.Fatalf("%v\n%+v", err, d.Stats())
			}
			if n := d.Stats().Counters["icmp_error"]; n == 0 {
				t.Error("no error was translated: the router did not need to send one")
			}
		})
	}
}
