package bpf

import (
	"context"
	"net/netip"
	"sync"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"pontoon/bpf/bpftest"
)

// A client goes on sending datagrams at the moment at which its first answer makes the connection
// established, on another CPU: its datagram finds the connection, before or after, and neither opens a second
// one nor is it dropped.
func TestDatagramAtTheMomentOfItsAnswerFindsTheConnection(t *testing.T) {
	const clients, rounds = 512, 12
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.Protocol = protoUDP
	b.sync(s)
	none := make([]byte, 6) // of the loopback, through which the packets are run
	payload := make([]byte, frameSize-14-20-8)
	for range rounds {
		questions, answers := make([][]byte, clients), make([][]byte, clients)
		for i := range clients {
			q := bpftest.Packet{Src: netip.AddrPortFrom(client, uint16(30000+i)), Dst: vipPort, Protocol: layers.IPProtocolUDP, Payload: payload}
			snat, _ := b.must(b.fromClient(q))
			a := bpftest.Packet{Src: endpoint1, Dst: snat, Protocol: layers.IPProtocolUDP, Payload: payload}
			q.SrcMAC, q.DstMAC, a.SrcMAC, a.DstMAC = none, none, none, none
			questions[i], answers[i] = q.Bytes(t), a.Bytes(t)
		}
		there, back := newReplayer(t, questions), newReplayer(t, answers)
		before := b.Stats()
		var wait sync.WaitGroup
		wait.Go(func() { there.measure(t, b, b.programs.entry, 2*clients, actRedirect) })
		wait.Go(func() { back.measure(t, b, b.programs.entry, clients, actRedirect) })
		wait.Wait()
		if n := len(b.halfKeys()); n != 0 {
			t.Errorf("%d halves are left of connections that are established", n)
		}
		after := b.Stats()
		for why, n := range after.Drops {
			if n != before.Drops[why] {
				t.Errorf("%d were dropped: %s", n-before.Drops[why], why)
			}
		}
		if removed, err := b.Flush(context.Background(), 7); err != nil || removed != clients {
			t.Errorf("%d connections, %v", removed, err)
		}
	}
}
