package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pontoon/bpf/bpftest"
)

// vlanTag is a priority and a VLAN, as they lie behind the MAC addresses (IEEE 802.1Q).
var vlanTag = []byte{0x81, 0x00, 0x60, 0x17}

func tagged(frame []byte) []byte { return slices.Insert(slices.Clone(frame), 12, vlanTag...) }

// untagged takes the tag out again, which must still be there.
func untagged(t *testing.T, frame []byte) []byte {
	t.Helper()
	if !bytes.Equal(frame[12:16], vlanTag) {
		t.Fatalf("the tag has become %x", frame[12:16])
	}
	return slices.Delete(slices.Clone(frame), 12, 16)
}

// A tag that lies in the frame (the inner of two, or the only one in XDP) stays where it is.
func TestTagInTheFrameIsCarriedThrough(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	send := func(from, to bpftest.Iface, p bpftest.Packet) (in, out []byte) {
		t.Helper()
		p.SrcMAC, p.DstMAC = to.MAC, from.MAC
		in = p.Bytes(t)
		action, out := b.run(from, tagged(in))
		if action != actRedirect {
			t.Fatalf("action %d, drops %v", action, b.Stats().Drops)
		}
		return in, untagged(t, out)
	}
	in, out := send(b.in, b.far, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	snat, endpoint := tuple(out)
	expectRewritten(t, in, out, snat, endpoint)
	in, out = send(b.out, b.end, bpftest.Packet{Src: endpoint, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	expectRewritten(t, in, out, vipPort, clientPort)
	in, out = send(b.in, b.far, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("in a VLAN")})
	expectRewritten(t, in, out, snat, endpoint)
}

// On a real interface the kernel takes the tag out and carries it beside the packet; what leaves
// has it again.
func TestTagBesideThePacketIsCarriedThrough(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	var sender, receiver int
	b.far.NS.Do(func() {
		sender, receiver = packetSocket(t, b.far), packetSocket(t, b.end)
	})
	frame := bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}.Bytes(t)
	if _, err := unix.Write(sender, tagged(frame)); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		got, tci, err := receiveTagged(receiver)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(got) < 54 || got[23] != protoTCP {
			continue // neighbour discovery of the namespaces
		}
		if _, to := tuple(got); to != endpoint1 || tci != binary.BigEndian.Uint16(vlanTag[2:]) {
			t.Errorf("a frame to %s with tag %#x", to, tci)
		}
		return
	}
	t.Fatalf("nothing arrived; drops %v", b.Stats().Drops)
}

// packetSocket sees and sends whole frames of one interface, and tells the tags of those it sees.
func packetSocket(t *testing.T, on bpftest.Iface) int {
	t.Helper()
	const everything = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, everything)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for _, err := range []error{
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: on.Index}),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

// receiveTagged returns one frame and its tag; EAGAIN when none came for a while.
func receiveTagged(fd int) (frame []byte, tci uint16, err error) {
	frame, control := make([]byte, 2048), make([]byte, 256)
	n, c, _, _, err := unix.Recvmsg(fd, frame, control, 0)
	if err != nil {
		return nil, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:c])
	if err != nil {
		return nil, 0, err
	}
	for _, m := range messages {
		if m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20 {
			tci = binary.NativeEndian.Uint16(m.Data[16:]) // tpacket_auxdata.tp_vlan_tci
		}
	}
	return frame[:n], tci, nil
}
