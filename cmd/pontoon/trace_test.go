package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"pontoon/web"
)

func fakeTrace() []web.TraceEvent {
	client, vip := netip.MustParseAddrPort("192.168.80.101:40000"), netip.MustParseAddrPort("192.168.80.200:80")
	e := web.TraceEvent{
		Time: time.Unix(1700000000, 123456789), Node: "lb1", Interface: "eth1", Protocol: "tcp", Source: client, Destination: vip,
		Flags: "SYN", Length: 60, SentLength: 60, Direction: "forward", Service: "web", Client: client, Verdict: web.TraceForwarded, Out: "eth2",
		Steps:  []web.TraceStep{{Decision: "service", Text: "service web: fullnat, rr"}, {Decision: "select", Text: "place 0"}},
		Before: make([]byte, 60), After: []byte(strings.Repeat("x", 60)),
	}
	dropped := e
	dropped.Verdict, dropped.Reason, dropped.Out, dropped.After, dropped.SentLength = web.TraceDropped, "no_flow", "", nil, 0
	return []web.TraceEvent{e, dropped}
}

func TestTracePrintsTheDecisionsOfEachPacket(t *testing.T) {
	status, out, stderr := runAgainst(t, newFakeCluster(), "trace", "--client", "192.168.80.101", "--timeout", "100ms", "--bytes")
	if status != exitDone {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{
		"tcp 192.168.80.101:40000 > 192.168.80.200:80 [SYN] 60 bytes in by eth1\n", "    service   service web: fullnat, rr\n",
		"  forwarded by eth2\n", "  dropped: no_flow\n", "    before    0000  00 00", "    after     0000  78 78",
		"2 packets: 1 dropped (no_flow 1), 1 forwarded\n", "1 packet more came faster",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestTracePrintsOneObjectALine(t *testing.T) {
	status, out, stderr := runAgainst(t, newFakeCluster(), "trace", "--service", "web", "--count", "2", "-o", "json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var e web.TraceEvent
	if status != exitDone || len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &e) != nil || e.Service != "web" {
		t.Errorf("status %d: %s%s", status, out, stderr)
	}
	if !strings.Contains(stderr, "2 packets") {
		t.Errorf("no summary: %s", stderr)
	}
}

func TestTraceWritesAFileThatParses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.pcapng")
	status, out, stderr := runAgainst(t, newFakeCluster(), "trace", "--service", "web", "--count", "2", "--write", path)
	if status != exitDone || !strings.Contains(out, "written to "+path) {
		t.Fatalf("status %d: %s%s", status, out, stderr)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	var faces []string
	var comments []string
	for {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		face, err := r.Interface(info.InterfaceIndex)
		if err != nil || len(data) != 60 || !info.Timestamp.Equal(time.Unix(1700000000, 123456789)) {
			t.Errorf("%d bytes at %s: %v", len(data), info.Timestamp, err)
		}
		faces, comments = append(faces, face.Name), append(comments, options.Comments...)
	}
	if got := strings.Join(faces, " "); got != "before after before" {
		t.Errorf("interfaces %q", got)
	}
	if got := strings.Join(comments, "|"); got != "forwarded by eth2; service web|forwarded by eth2; service web|dropped: no_flow; service web" {
		t.Errorf("comments %q", got)
	}
}

func TestTraceRefusesWhatItCannotDo(t *testing.T) {
	for _, row := range []struct {
		status int
		want   string
		args   []string
	}{
		{exitUsage, "--client or --service", nil},
		{exitUsage, "--count 0", []string{"--service", "web", "--count", "0"}},
		{exitUsage, "--timeout 11m", []string{"--service", "web", "--timeout", "11m"}},
		{exitFailed, "one session at a time", []string{"--service", "busy"}},
		{exitFailed, "want an address", []string{"--client", "nobody"}},
		{exitFailed, "no such file", []string{"--service", "web", "--write", "/nowhere/at/all"}},
	} {
		status, _, stderr := runAgainst(t, newFakeCluster(), append([]string{"trace"}, row.args...)...)
		if status != row.status || !strings.Contains(stderr, row.want) {
			t.Errorf("%v: status %d: %s", row.args, status, stderr)
		}
	}
}

// runAgainst runs a command against a made-up daemon, as the process would.
func runAgainst(t *testing.T, d *fakeDaemon, args ...string) (status int, out, stderr string) {
	t.Helper()
	a, stdout, errOut := testApp(startFake(t, d))
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(t.Context())
	status = report(errOut, cmd, err)
	return status, stdout.String(), errOut.String()
}
