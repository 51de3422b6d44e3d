package traffic

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestFramesSurviveAnyCutting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		n := rapid.IntRange(1, 20).Draw(t, "frames")
		mean := rapid.IntRange(0, maxPayload/2).Draw(t, "mean")
		for i := range n {
			f := frame{kind: kindRequest, conn: 7, seq: uint64(i)}
			stream = appendFrame(stream, f, f.payloadLen(mean))
		}
		dec, seq := newDecoder(), uint64(0)
		for len(stream) > 0 {
			k := rapid.IntRange(1, len(stream)).Draw(t, "cut")
			k = copy(dec.space(), stream[:k])
			stream = stream[k:]
			if err := dec.filled(k, func(f frame) error {
				err := f.expect(kindRequest, 7, seq)
				seq++
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if int(seq) != n || dec.have != 0 {
			t.Fatalf("%d of %d frames, %d bytes over", seq, n, dec.have)
		}
	})
}

func TestEveryFlippedBitIsSeen(t *testing.T) {
	f := frame{kind: kindAnswer, conn: 3, seq: 9, ack: 9}
	good := appendFrame(nil, f, 33)
	for bit := range len(good) * 8 {
		b := append([]byte(nil), good...)
		b[bit/8] ^= 1 << (bit % 8)
		// A longer payload looks like a frame that is not complete yet.
		got, size, err := parseFrame(b)
		if err == nil && size > 0 {
			t.Errorf("bit %d: took %+v", bit, got)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("bit %d: %v", bit, err)
		}
	}
}

func TestPayloadMustBelongToItsFrame(t *testing.T) {
	// A frame whose checksum is right but whose payload is another frame's:
	// what a load balancer that mixes up two connections could not produce,
	// but a server that copies could.
	f := frame{kind: kindAnswer, conn: 3, seq: 9}
	b := appendFrame(nil, f, 40)
	fillPayload(b[headerSize:headerSize+40], f.payloadSeed()+1)
	b = resum(b)
	if _, _, err := parseFrame(b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestExpectNamesTheDifference(t *testing.T) {
	f := frame{kind: kindAnswer, conn: 3, seq: 9}
	if err := f.expect(kindAnswer, 3, 9); err != nil {
		t.Error(err)
	}
	for _, err := range []error{f.expect(kindRequest, 3, 9), f.expect(kindAnswer, 4, 9), f.expect(kindAnswer, 3, 8)} {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v", err)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(appendFrame(nil, frame{kind: kindRequest, conn: 1}, 10))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n and then enough to make a header of it"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, size, err := parseFrame(b); size > len(b) || (err != nil && !errors.Is(err, ErrCorrupt)) {
			t.Errorf("size %d of %d: %v", size, len(b), err)
		}
	})
}
