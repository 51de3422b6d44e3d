package stable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// values are what a node must not forget.
type values struct {
	current   uint64 // CurrentTerm
	voteTerm  uint64 // LastVoteTerm
	candidate []byte // LastVoteCand
}

func (v values) equal(o values) bool {
	return v.current == o.current && v.voteTerm == o.voteTerm && bytes.Equal(v.candidate, o.candidate)
}

// One slot, big endian:
//
//	 0  4  "PTSV"
//	 4  2  version of the format
//	 6  2  length of the candidate
//	 8  8  sequence number of the write, from 1
//	16  8  CurrentTerm
//	24  8  LastVoteTerm
//	32  …  LastVoteCand, zeros behind it
//	508 4  CRC-32C of all before it
//
// A slot begins at a multiple of slotSpace, so that no write touches the page or
// the sector that the other slot is in.
const (
	magic         = "PTSV"
	formatVersion = 1
	recordSize    = 512
	slotSpace     = 4096
	fileSize      = 2 * slotSpace
	maxCandidate  = recordSize - 32 - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errNewer says that a later version of the program wrote the file.
var errNewer = errors.New("it was written by a newer version: install that")

func encode(seq uint64, v values) ([]byte, error) {
	if len(v.candidate) > maxCandidate {
		return nil, fmt.Errorf("candidate of %d bytes: at most %d fit", len(v.candidate), maxCandidate)
	}
	b := make([]byte, recordSize)
	copy(b, magic)
	binary.BigEndian.PutUint16(b[4:], formatVersion)
	binary.BigEndian.PutUint16(b[6:], uint16(len(v.candidate)))
	binary.BigEndian.PutUint64(b[8:], seq)
	binary.BigEndian.PutUint64(b[16:], v.current)
	binary.BigEndian.PutUint64(b[24:], v.voteTerm)
	copy(b[32:], v.candidate)
	binary.BigEndian.PutUint32(b[recordSize-4:], crc32.Checksum(b[:recordSize-4], castagnoli))
	return b, nil
}

// decode reads a slot; ok is false when it holds no whole record.
func decode(b []byte) (seq uint64, v values, ok bool, err error) {
	sum := crc32.Checksum(b[:recordSize-4], castagnoli)
	if string(b[:4]) != magic || sum != binary.BigEndian.Uint32(b[recordSize-4:]) {
		return 0, v, false, nil
	}
	if version := binary.BigEndian.Uint16(b[4:]); version != formatVersion {
		return 0, v, false, errNewer
	}
	length := int(binary.BigEndian.Uint16(b[6:]))
	if length > maxCandidate {
		return 0, v, false, nil
	}
	v = values{current: binary.BigEndian.Uint64(b[16:]), voteTerm: binary.BigEndian.Uint64(b[24:])}
	if length > 0 {
		v.candidate = bytes.Clone(b[32 : 32+length])
	}
	return binary.BigEndian.Uint64(b[8:]), v, true, nil
}

// newest picks the valid record with the highest number; ok is false when no
// slot holds one.
func newest(file []byte) (seq uint64, slot int, v values, ok bool, err error) {
	for i := range 2 {
		n, one, valid, err := decode(file[i*slotSpace:][:recordSize])
		if err != nil {
			return 0, 0, v, false, err
		}
		if valid && (!ok || n > seq) {
			seq, slot, v, ok = n, i, one, true
		}
	}
	return seq, slot, v, ok, nil
}
