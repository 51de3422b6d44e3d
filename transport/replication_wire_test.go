package transport

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestReplicationFrameRoundTrip(t *testing.T) {
	for _, f := range []replFrame{
		{length: 8, typ: replFrameSnapshotBegin, sequence: 1},
		{length: 256 * 128, typ: replFrameRecords, flags: replFlagSnapshot, sequence: 2, count: 256},
		{length: 128, typ: replFrameRecords, sequence: 1<<64 - 1, count: 1},
		{length: 16, typ: replFrameSnapshotEnd, sequence: 3},
		{typ: replFrameKeepalive, sequence: 4},
		{typ: replFrameAck},
		{length: 5, typ: replFrameBye},
	} {
		b := appendReplFrame(nil, f)
		if len(b) != replFrameHeader {
			t.Fatalf("header has %d bytes", len(b))
		}
		payload := bytes.Repeat([]byte{7}, int(f.length))
		got, gotPayload, err := readReplFrame(bytes.NewReader(append(b, payload...)), 128, nil)
		if err != nil || got != f || !bytes.Equal(gotPayload, payload) {
			t.Errorf("frame %+v came back as %+v, %v", f, got, err)
		}
	}
}

// The bytes in REPLICATION.md are these.
func TestReplicationWireBytesAreAsDocumented(t *testing.T) {
	frame := appendReplFrame(nil, replFrame{length: 0x100, typ: replFrameRecords, flags: 1, sequence: 0x0203, count: 2})
	if want := []byte{0, 0, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 2}; !bytes.Equal(frame, want) {
		t.Errorf("frame is % x", frame)
	}
	offer := appendReplGreeting(nil, replProtocolPlain, replOffer{recordSize: 128, node: "lb1", versions: []uint16{2, 1}}.encode())
	if want := "PTRP\x00\x01\x00\x0d\x00\x00\x00\x80\x03lb1\x02\x00\x02\x00\x01"; string(offer) != want {
		t.Errorf("offer is %q", offer)
	}
	reply := appendReplGreeting(nil, replProtocolPlain, replReply{accepted: true, version: 2, node: "lb2", reason: "ok"}.encode())
	if want := "PTRP\x00\x01\x00\x0b\x01\x00\x02\x03lb2\x00\x02ok"; string(reply) != want {
		t.Errorf("reply is %q", reply)
	}
}

func TestReplicationMalformedFramesAreRefused(t *testing.T) {
	reserved := appendReplFrame(nil, replFrame{typ: replFrameKeepalive})
	reserved[7] = 1
	for name, b := range map[string][]byte{
		"reserved bytes":       reserved,
		"unknown type":         appendReplFrame(nil, replFrame{typ: 99}),
		"unknown flag":         appendReplFrame(nil, replFrame{typ: replFrameRecords, flags: 2, length: 128, count: 1}),
		"flag on a keepalive":  appendReplFrame(nil, replFrame{typ: replFrameKeepalive, flags: 1}),
		"no records":           appendReplFrame(nil, replFrame{typ: replFrameRecords}),
		"count and length":     appendReplFrame(nil, replFrame{typ: replFrameRecords, length: 129, count: 1}),
		"too many records":     appendReplFrame(nil, replFrame{typ: replFrameRecords, length: 128 << 20, count: 1 << 20}),
		"count overflows":      appendReplFrame(nil, replFrame{typ: replFrameRecords, length: 0, count: 1 << 25}),
		"keepalive with body":  appendReplFrame(nil, replFrame{typ: replFrameKeepalive, length: 1}),
		"ack with records":     appendReplFrame(nil, replFrame{typ: replFrameAck, count: 1}),
		"begin without number": appendReplFrame(nil, replFrame{typ: replFrameSnapshotBegin, length: 4}),
		"end without count":    appendReplFrame(nil, replFrame{typ: replFrameSnapshotEnd, length: 8}),
		"endless goodbye":      appendReplFrame(nil, replFrame{typ: replFrameBye, length: replMaxReason + 1}),
	} {
		if _, _, err := readReplFrame(io.MultiReader(bytes.NewReader(b), neverRead{t}), 128, nil); !errors.Is(err, ErrReplicationMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// neverRead fails when a payload is asked for that must not be waited for.
type neverRead struct{ t *testing.T }

func (n neverRead) Read([]byte) (int, error) {
	n.t.Error("the payload of a malformed frame was read")
	return 0, io.EOF
}

func TestReplicationGreetingsRoundTrip(t *testing.T) {
	o := replOffer{recordSize: 128, node: strings.Repeat("n", 255), versions: []uint16{3, 2, 1}}
	if got, err := parseReplOffer(o.encode()); err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("offer came back as %+v, %v", got, err)
	}
	for _, a := range []replReply{{accepted: true, version: 7, node: "b"}, {node: "b", reason: "no"}} {
		if got, err := parseReplReply(a.encode()); err != nil || got != a {
			t.Errorf("reply %+v came back as %+v, %v", a, got, err)
		}
	}
	long := replReply{reason: strings.Repeat("x", 5000)}
	if got, err := parseReplReply(long.encode()); err != nil || len(got.reason) != replMaxReason {
		t.Errorf("long reason came back with %d bytes, %v", len(got.reason), err)
	}
	for _, b := range []string{"HTTP/1.1 400 Bad Request", "PTRP\x00\x01\xff\xff"} {
		if _, _, err := readReplGreeting(strings.NewReader(b)); !errors.Is(err, ErrReplicationMalformed) {
			t.Errorf("greeting %q: %v", b, err)
		}
	}
}

func TestReplicationVersionIsTheNewestInCommon(t *testing.T) {
	for _, c := range []struct {
		offered, spoken []uint16
		want            uint16
	}{
		{[]uint16{1}, []uint16{1}, 1},
		{[]uint16{3, 2, 1}, []uint16{2, 1}, 2},
		{[]uint16{2, 1}, []uint16{3, 2}, 2},
		{[]uint16{2}, []uint16{1}, 0},
		{nil, []uint16{1}, 0},
	} {
		got, err := chooseReplVersion(c.offered, c.spoken)
		if got != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("offered %v, spoken %v: %d, %v", c.offered, c.spoken, got, err)
		}
	}
}

// FuzzReplicationFrames checks that no bytes make the decoder fail, wait or
// reserve more than a frame may have, and that what it accepts encodes back.
func FuzzReplicationFrames(f *testing.F) {
	f.Add(appendReplFrame(nil, replFrame{typ: replFrameKeepalive, sequence: 5}))
	f.Add(append(appendReplFrame(nil, replFrame{length: 16, typ: replFrameRecords, count: 2}), make([]byte, 16)...))
	f.Add(append(appendReplFrame(nil, replFrame{length: 3, typ: replFrameBye}), "why"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		rd := bytes.NewReader(b)
		var buf []byte
		for {
			before := len(b) - rd.Len()
			frame, payload, err := readReplFrame(rd, 8, buf)
			if err != nil {
				return
			}
			if cap(payload) > ReplicationMaxPayload {
				t.Fatalf("payload buffer of %d bytes", cap(payload))
			}
			if got := slices.Concat(appendReplFrame(nil, frame), payload); !bytes.Equal(got, b[before:before+len(got)]) {
				t.Fatalf("% x decoded to %+v", b[before:], frame)
			}
			buf = payload
		}
	})
}

func FuzzReplicationGreetings(f *testing.F) {
	f.Add(appendReplGreeting(nil, 1, replOffer{recordSize: 128, node: "a", versions: []uint16{1}}.encode()))
	f.Add(appendReplGreeting(nil, 1, replReply{accepted: true, version: 1, node: "a", reason: "r"}.encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, body, err := readReplGreeting(bytes.NewReader(b))
		if err != nil {
			return
		}
		if o, err := parseReplOffer(body); err == nil && !bytes.Equal(o.encode(), body) {
			t.Fatalf("offer % x decoded to %+v", body, o)
		}
		if a, err := parseReplReply(body); err == nil && len(a.reason) <= replMaxReason && !bytes.Equal(a.encode(), body) {
			t.Fatalf("reply % x decoded to %+v", body, a)
		}
	})
}
