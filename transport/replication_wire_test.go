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
		{length: 12 + 8*4096, typ: replFrameDigest, sequence: 5},
		{length: 9, typ: replFrameDigestAnswer},
		{length: 9 + 12*replMaxBuckets, typ: replFrameDigestAnswer},
		{length: 8 + 4*3, typ: replFrameRepairBegin, sequence: 6},
		{length: 16, typ: replFrameRepairEnd, sequence: 7},
		{length: 20 + 8*4096, typ: replFrameOrphanDigest, sequence: 8},
		{length: 128, typ: replFrameRecords, flags: replFlagOrphans, sequence: 9, count: 1},
		{length: 16, typ: replFrameOrphansEnd, sequence: 10},
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
	both := replOffer{recordSize: 128, node: "lb1", versions: []uint16{2}, protocols: []uint16{2}}.encode()
	if want := "\x00\x00\x00\x80\x03lb1\x02\x00\x02\xff\x02"; string(both) != want {
		t.Errorf("offer of both protocols is %q", both)
	}
	digest := appendReplDigest(nil, replDigest{number: 4, version: 1, sums: []uint64{5, 6}})
	if want := "\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06"; string(digest) != want {
		t.Errorf("digest is %q", digest)
	}
	orphans := appendReplDigest(nil, replDigest{number: 4, version: 1, orphans: true, view: 3, sums: []uint64{5, 6}})
	if want := "\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03" +
		"\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06"; string(orphans) != want {
		t.Errorf("digest of orphans is %q", orphans)
	}
	answer := appendReplDigestAnswer(nil, replDigestAnswer{number: 4, status: 1, differ: []replDifference{{1, 6}}})
	if want := "\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x06"; string(answer) != want {
		t.Errorf("answer is %q", answer)
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
		"unknown flag":         appendReplFrame(nil, replFrame{typ: replFrameRecords, flags: 4, length: 128, count: 1}),
		"two flags":            appendReplFrame(nil, replFrame{typ: replFrameRecords, flags: 3, length: 128, count: 1}),
		"orphans of nothing":   appendReplFrame(nil, replFrame{typ: replFrameOrphanDigest, length: 20}),
		"orphans' end short":   appendReplFrame(nil, replFrame{typ: replFrameOrphansEnd, length: 8}),
		"flag on a keepalive":  appendReplFrame(nil, replFrame{typ: replFrameKeepalive, flags: 1}),
		"no records":           appendReplFrame(nil, replFrame{typ: replFrameRecords}),
		"count and length":     appendReplFrame(nil, replFrame{typ: replFrameRecords, length: 129, count: 1}),
		"too many records":     appendReplFrame(nil, replFrame{typ: replFrameRecords, length: 128 << 20, count: 1 << 20}),
		"count overflows":      appendReplFrame(nil, replFrame{typ: replFrameRecords, length: 0, count: 1 << 25}),
		"keepalive with body":  appendReplFrame(nil, replFrame{typ: replFrameKeepalive, length: 1}),
		"ack with records":     appendReplFrame(nil, replFrame{typ: replFrameAck, count: 1}),
		"begin without number": appendReplFrame(nil, replFrame{typ: replFrameSnapshotBegin, length: 4}),
		"end without count":    appendReplFrame(nil, replFrame{typ: replFrameSnapshotEnd, length: 8}),
		"digest of nothing":    appendReplFrame(nil, replFrame{typ: replFrameDigest, length: 12}),
		"half a number":        appendReplFrame(nil, replFrame{typ: replFrameDigest, length: 12 + 8 + 4}),
		"too many buckets":     appendReplFrame(nil, replFrame{typ: replFrameDigest, length: 12 + 8*replMaxBuckets + 8}),
		"answer without head":  appendReplFrame(nil, replFrame{typ: replFrameDigestAnswer, length: 8}),
		"half a difference":    appendReplFrame(nil, replFrame{typ: replFrameDigestAnswer, length: 9 + 6}),
		"repair of nothing":    appendReplFrame(nil, replFrame{typ: replFrameRepairBegin, length: 8}),
		"repair end too short": appendReplFrame(nil, replFrame{typ: replFrameRepairEnd, length: 8}),
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

func TestReplicationDigestsRoundTrip(t *testing.T) {
	d := replDigest{number: 7, version: 3, sums: []uint64{1, 0, 1<<64 - 1}}
	if got := parseReplDigest(appendReplDigest(nil, d), false); !reflect.DeepEqual(got, d) {
		t.Errorf("digest came back as %+v", got)
	}
	orphans := replDigest{number: 7, version: 3, orphans: true, view: 1 << 63, sums: []uint64{1, 2}}
	if got := parseReplDigest(appendReplDigest(nil, orphans), true); !reflect.DeepEqual(got, orphans) {
		t.Errorf("digest of orphans came back as %+v", got)
	}
	want := replDigestAnswer{number: 7, status: replDigestCompared, differ: []replDifference{{0, 1}, {2, 1<<64 - 2}}}
	a := compareReplDigest(d, 3, []uint64{0, 0, 1})
	if !reflect.DeepEqual(a, want) {
		t.Errorf("comparison says %+v", a)
	}
	if got, err := parseReplDigestAnswer(appendReplDigestAnswer(nil, a)); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("answer came back as %+v, %v", got, err)
	}
	for name, other := range map[string]replDigestAnswer{
		"version": compareReplDigest(d, 2, []uint64{1, 0, 1<<64 - 1}),
		"size":    compareReplDigest(d, 3, []uint64{1, 0}),
	} {
		if other.status != replDigestOther || other.differ != nil {
			t.Errorf("digests of another %s are compared: %+v", name, other)
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
	f.Add(append(appendReplFrame(nil, replFrame{length: 21, typ: replFrameDigestAnswer}), make([]byte, 21)...))
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
			checkDigestPayload(t, frame, payload)
			buf = payload
		}
	})
}

func checkDigestPayload(t *testing.T, frame replFrame, payload []byte) {
	switch frame.typ {
	case replFrameDigest, replFrameOrphanDigest:
		if got := appendReplDigest(nil, parseReplDigest(payload, frame.typ == replFrameOrphanDigest)); !bytes.Equal(got, payload) {
			t.Fatalf("digest % x", payload)
		}
	case replFrameDigestAnswer:
		if a, err := parseReplDigestAnswer(payload); err == nil && !bytes.Equal(appendReplDigestAnswer(nil, a), payload) {
			t.Fatalf("answer % x", payload)
		}
	case replFrameRepairBegin:
		if b, err := parseReplBuckets(payload[8:]); err == nil && !slices.IsSorted(b) {
			t.Fatalf("buckets %v", b)
		}
	}
}

func FuzzReplicationGreetings(f *testing.F) {
	f.Add(appendReplGreeting(nil, 1, replOffer{recordSize: 128, node: "a", versions: []uint16{1}}.encode()))
	f.Add(appendReplGreeting(nil, 1, replReply{accepted: true, version: 1, node: "a", reason: "r"}.encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, body, err := readReplGreeting(bytes.NewReader(b))
		if err != nil {
			return
		}
		if o, err := parseReplOffer(body); err == nil && !bytes.Equal(o.encode(), body) && !replMixesMarks(body) {
			t.Fatalf("offer % x decoded to %+v", body, o)
		}
		if a, err := parseReplReply(body); err == nil && len(a.reason) <= replMaxReason && !bytes.Equal(a.encode(), body) {
			t.Fatalf("reply % x decoded to %+v", body, a)
		}
	})
}

// replMixesMarks says that an offer's list has a version behind a mark, which this
// node never writes and which does not encode back.
func replMixesMarks(body []byte) bool {
	list, marked := body[int(body[4])+6:], false
	for ; len(list) > 1; list = list[2:] {
		if list[0] == 0xff {
			marked = true
		} else if marked {
			return true
		}
	}
	return false
}
