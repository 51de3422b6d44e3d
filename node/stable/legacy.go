package stable

import (
	"encoding/binary"
	"fmt"
)

// Legacy is the database in which earlier versions kept the same values. It is
// kept so that one of them may come back without harm, see guard.
type Legacy interface {
	// Get returns nil for a key that is not there.
	Get(key []byte) ([]byte, error)
	// Set returns when the value is on the disk.
	Set(key, value []byte) error
}

// reserve is how far ahead of the real term the guard is put.
const reserve = 1024

// guardMark stands behind a term in the legacy database that is no real one. An
// earlier version reads the eight bytes before it, and writes eight bytes back
// when it starts: that is how its having run is known.
const guardMark = "RESERVED"

// found is what the legacy database says.
type found struct {
	values
	guarded bool // current is a guard: no earlier version has run since it was written
}

func readLegacy(db Legacy) (found, error) {
	var f found
	var raw [3][]byte
	for i, key := range [][]byte{keyTerm, keyVoteTerm, keyVoteCandidate} {
		b, err := db.Get(key)
		if err != nil {
			return f, fmt.Errorf("read %s of an earlier version: %w", key, err)
		}
		raw[i] = b
	}
	f.guarded = len(raw[0]) == 8+len(guardMark) && string(raw[0][8:]) == guardMark
	for i, into := range []*uint64{&f.current, &f.voteTerm} {
		if len(raw[i]) >= 8 {
			*into = binary.BigEndian.Uint64(raw[i])
		} else if len(raw[i]) > 0 {
			return f, fmt.Errorf("read a term of an earlier version: it has %d bytes", len(raw[i]))
		}
	}
	f.candidate = raw[2]
	return f, nil
}

// merge finds what counts, of a file (if it is there and whole) and what the
// legacy database says.
//
//   - While the guard stands, the file is right. Without a file the guard itself is
//     the safe choice: every real term was below it, so nothing was promised in it.
//   - Where it does not stand, either nothing ever was in the file, or an earlier
//     version ran after it, or the store was closed in good order: the later of
//     each wins.
func merge(file values, whole bool, legacy found) values {
	switch {
	case whole && legacy.guarded:
		return file
	case legacy.guarded:
		return values{current: legacy.current}
	case !whole:
		return legacy.values
	}
	out := file
	out.current = max(file.current, legacy.current)
	if legacy.voteTerm > file.voteTerm {
		out.voteTerm, out.candidate = legacy.voteTerm, legacy.candidate
	}
	return out
}

// guard keeps an earlier version from voting twice. It would find the terms of
// before the file was made and could vote again in one in which this version has
// voted. So it is made to find a term that this one has not reached: there and
// above nothing was promised. The price of going back is one election.
func guard(db Legacy, term uint64) error {
	b := binary.BigEndian.AppendUint64(nil, term)
	if err := db.Set(keyTerm, append(b, guardMark...)); err != nil {
		return fmt.Errorf("guard against earlier versions: %w", err)
	}
	return nil
}

// handBack lets an earlier version go on from here. The guard falls last.
func handBack(db Legacy, v values) error {
	if v.voteTerm > 0 {
		if err := db.Set(keyVoteTerm, binary.BigEndian.AppendUint64(nil, v.voteTerm)); err != nil {
			return fmt.Errorf("hand the vote back: %w", err)
		}
		if err := db.Set(keyVoteCandidate, v.candidate); err != nil {
			return fmt.Errorf("hand the vote back: %w", err)
		}
	}
	if err := db.Set(keyTerm, binary.BigEndian.AppendUint64(nil, v.current)); err != nil {
		return fmt.Errorf("hand the term back: %w", err)
	}
	return nil
}
