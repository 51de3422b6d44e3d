package e2e

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"pontoon/internal/lab"
)

// TestTraceTellsOfARealConnection traces a client while it comes and goes.
func TestTraceTellsOfARealConnection(t *testing.T) {
	t.Parallel()
	l := newCluster(t, lab.Config{Topology: lab.TwoLeg, Nodes: 1, Clients: 1, Endpoints: 1})
	serve(t, l)
	declare(t, l, "fullnat", true)
	client, n := l.Clients()[0], l.Nodes()[0]
	file := filepath.Join(t.TempDir(), "trace.pcapng")
	type result struct {
		out string
		err error
	}
	traced := make(chan result, 1)
	go func() {
		out, err := n.CLI(within(t, 60*time.Second), "trace", "--client", client.Addr().String(), "--service", "web",
			"--count", "40", "--timeout", "50s", "--write", file)
		traced <- result{out, err}
	}()
	// Not as fast as it goes: until a busy machine has loaded the tracer, the client would run out of ports.
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for {
		c, err := client.Dial(within(t, 5*time.Second), webVIP)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		select {
		case r := <-traced:
			if r.err != nil {
				t.Fatal(r.err)
			}
			checkTrace(t, r.out, client.Addr().String(), l.Endpoints()[0].Addr().String())
			checkCapture(t, file)
			return
		case <-pause.C:
		}
	}
}

func checkTrace(t *testing.T, out, client, endpoint string) {
	t.Helper()
	for _, want := range []string{
		"tcp " + client + ":", "[SYN]", "service web: fullnat, rr", "is endpoint " + endpoint, "source port ",
		"new half-open connection", "synack, was syn", "established, was synack", "fullnat: from ", "(reply to " + client + ":",
		"forwarded by ", "40 packets: ", "written to ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%.4000s", want, out)
		}
	}
}

// checkCapture demands that each packet that left is one that came in, with other addresses.
func checkCapture(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	var seen [2]int
	var before *layers.TCP
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		tcp, ok := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok {
			t.Fatalf("packet %d is not TCP: %x", seen, data)
		}
		if info.InterfaceIndex == 1 && before == nil {
			t.Fatal("the first packet is one that left")
		}
		if info.InterfaceIndex == 1 && (tcp.Seq != before.Seq || tcp.SrcPort == before.SrcPort) {
			t.Errorf("packet %d leaves as %+v, came as %+v", seen, tcp, before)
		}
		seen[info.InterfaceIndex]++
		before = tcp
	}
	if seen[0] != 40 || seen[1] == 0 || seen[1] > 40 {
		t.Errorf("%d packets before and %d after, of 40", seen[0], seen[1])
	}
}
