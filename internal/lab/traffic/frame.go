package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A frame, all numbers big endian:
//
//	 0  magic      4 bytes
//	 4  kind       1
//	 5  flags      1
//	 6  payload    2   length of the payload
//	 8  conn       8   the connection's id, chosen by the client
//	16  seq        8   number in this direction, from 0
//	24  ack        8   answer: the seq of the request it answers
//	32  payload
//	    CRC-32C    4   over everything before it
const (
	frameMagic  = 0x50544e31 // "PTN1"
	headerSize  = 32
	trailerSize = 4
	maxPayload  = 1024
	maxFrame    = headerSize + maxPayload + trailerSize
)

// kind is the direction of a frame.
type kind uint8

const (
	kindRequest kind = 1
	kindAnswer  kind = 2
)

// flagCorrupt in an answer says that the server has seen a bad request and
// will close the connection.
const flagCorrupt uint8 = 1

// ErrCorrupt is wrapped by every error about a stream that is not what its
// sender sent.
var ErrCorrupt = errors.New("stream is corrupt")

// frame is the head of a frame.
type frame struct {
	kind  kind
	flags uint8
	conn  uint64
	seq   uint64
	ack   uint64
}

// castagnoli is the polynomial with hardware support on both architectures.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): neighbouring
// inputs give unrelated outputs.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// payloadSeed is where the payload of a frame begins; both ends compute it.
func (f frame) payloadSeed() uint64 { return mix(f.conn ^ mix(f.seq<<2|uint64(f.kind))) }

// payloadLen varies the length around mean, odd ones included: checksum
// arithmetic likes to fail on those.
func (f frame) payloadLen(mean int) int {
	if mean <= 1 {
		return mean
	}
	return mean/2 + int(f.payloadSeed()>>32%uint64(mean))
}

// fillPayload writes the payload that belongs to the seed.
func fillPayload(b []byte, seed uint64) {
	var word [8]byte
	for len(b) > 0 {
		seed = mix(seed)
		binary.BigEndian.PutUint64(word[:], seed)
		b = b[copy(b, word[:]):]
	}
}

// checkPayload compares b with the payload that belongs to the seed.
func checkPayload(b []byte, seed uint64) bool {
	var word [8]byte
	for len(b) > 0 {
		seed = mix(seed)
		binary.BigEndian.PutUint64(word[:], seed)
		n := min(len(b), len(word))
		if string(b[:n]) != string(word[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// appendFrame appends the encoded frame with a payload of n bytes.
func appendFrame(dst []byte, f frame, n int) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, frameMagic)
	dst = append(dst, byte(f.kind), f.flags)
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	dst = binary.BigEndian.AppendUint64(dst, f.conn)
	dst = binary.BigEndian.AppendUint64(dst, f.seq)
	dst = binary.BigEndian.AppendUint64(dst, f.ack)
	body := len(dst)
	dst = append(dst, make([]byte, n)...)
	fillPayload(dst[body:], f.payloadSeed())
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli()))
}

// parseFrame decodes the frame at the start of b and returns its size, which
// is 0 when b does not hold all of it yet. It checks everything that can be
// checked without knowing the connection.
func parseFrame(b []byte) (f frame, size int, err error) {
	if len(b) < headerSize {
		return f, 0, nil
	}
	if m := binary.BigEndian.Uint32(b); m != frameMagic {
		return f, 0, fmt.Errorf("%w: no frame begins here (%#08x)", ErrCorrupt, m)
	}
	n := int(binary.BigEndian.Uint16(b[6:]))
	if n > maxPayload {
		return f, 0, fmt.Errorf("%w: payload of %d bytes", ErrCorrupt, n)
	}
	size = headerSize + n + trailerSize
	if len(b) < size {
		return f, 0, nil
	}
	sum := binary.BigEndian.Uint32(b[size-trailerSize:])
	if crc32.Checksum(b[:size-trailerSize], castagnoli()) != sum {
		return f, 0, fmt.Errorf("%w: checksum does not match", ErrCorrupt)
	}
	f = frame{
		kind: kind(b[4]), flags: b[5], conn: binary.BigEndian.Uint64(b[8:]),
		seq: binary.BigEndian.Uint64(b[16:]), ack: binary.BigEndian.Uint64(b[24:]),
	}
	if !checkPayload(b[headerSize:size-trailerSize], f.payloadSeed()) {
		return f, 0, fmt.Errorf("%w: payload does not belong to frame %d", ErrCorrupt, f.seq)
	}
	return f, size, nil
}

// expect checks a frame against its place in the stream.
func (f frame) expect(k kind, conn, seq uint64) error {
	switch {
	case f.kind != k:
		return fmt.Errorf("%w: a frame of kind %d", ErrCorrupt, f.kind)
	case f.conn != conn:
		return fmt.Errorf("%w: a frame of connection %#x on connection %#x", ErrCorrupt, f.conn, conn)
	case f.seq != seq:
		return fmt.Errorf("%w: frame %d where %d belongs", ErrCorrupt, f.seq, seq)
	}
	return nil
}

// decoder cuts a byte stream into frames. Its buffer is small and its own:
// with a thousand connections every kilobyte counts.
type decoder struct {
	buf  []byte
	have int
}

func newDecoder() decoder { return decoder{buf: make([]byte, maxFrame)} }

// space is where the next bytes of the stream belong; it is never empty
// between calls of next that returned no frame.
func (d *decoder) space() []byte { return d.buf[d.have:] }

// filled takes n bytes that were put into space, and calls got with every
// frame that is complete.
func (d *decoder) filled(n int, got func(frame) error) error {
	d.have += n
	at := 0
	for {
		f, size, err := parseFrame(d.buf[at:d.have])
		if err != nil {
			return err
		}
		if size == 0 {
			break
		}
		at += size
		if err := got(f); err != nil {
			return err
		}
	}
	d.have = copy(d.buf, d.buf[at:d.have])
	return nil
}
