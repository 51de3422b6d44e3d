package stable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// mapDB stands for the database of earlier versions.
type mapDB struct {
	mu   sync.Mutex
	rows map[string][]byte
	fail error
	sets int
}

func (m *mapDB) Get(k []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.rows[string(k)]), nil
}

func (m *mapDB) Set(k, v []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if m.rows == nil {
		m.rows = map[string][]byte{}
	}
	m.sets++
	m.rows[string(k)] = bytes.Clone(v)
	return nil
}

func (m *mapDB) term(key []byte) uint64 {
	b, _ := m.Get(key)
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// olderStarts does what hashicorp/raft does with the database when it starts:
// it reads the term and writes it back in eight bytes.
func (m *mapDB) olderStarts(t testing.TB) (term uint64) {
	t.Helper()
	term = m.term(keyTerm)
	if err := m.Set(keyTerm, binary.BigEndian.AppendUint64(nil, term)); err != nil {
		t.Fatal(err)
	}
	return term
}

func openAt(t testing.TB, path string, db Legacy) *Store {
	t.Helper()
	s, err := Open(path, db)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// vote does what Raft does when it votes in a later term.
func vote(s *Store, term uint64, candidate string) error {
	return errors.Join(s.SetUint64(keyTerm, term), s.SetUint64(keyVoteTerm, term), s.Set(keyVoteCandidate, []byte(candidate)))
}

func check(t testing.TB, s *Store, current, voteTerm uint64, candidate string) {
	t.Helper()
	c, err1 := s.GetUint64(keyTerm)
	v, err2 := s.GetUint64(keyVoteTerm)
	who, err3 := s.Get(keyVoteCandidate)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if c != current || v != voteTerm || string(who) != candidate {
		t.Fatalf("term %d, voted in %d for %q; want %d, %d, %q", c, v, who, current, voteTerm, candidate)
	}
}

func TestVoteOutlivesTheProcess(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	s := openAt(t, path, db)
	check(t, s, 0, 0, "")
	if err := vote(s, 1, "192.0.2.1:7400"); err != nil {
		t.Fatal(err)
	}
	for term := uint64(2); term < 9; term++ {
		if err := s.SetUint64(keyTerm, term); err != nil {
			t.Fatal(err)
		}
		s = openAt(t, path, db) // as after a crash: nobody closed it
		check(t, s, term, 1, "192.0.2.1:7400")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64(keyTerm, 10); !errors.Is(err, ErrClosed) {
		t.Errorf("written after the end: %v", err)
	}
	check(t, openAt(t, path, db), 8, 1, "192.0.2.1:7400")
}

// countedFile counts writes.
type countedFile struct {
	file
	writes int
}

func (c *countedFile) WriteAt(b []byte, at int64) (int, error) {
	c.writes++
	return c.file.WriteAt(b, at)
}

func TestVoteInALaterTermTakesTwoWrites(t *testing.T) {
	db := &mapDB{}
	s := openAt(t, filepath.Join(t.TempDir(), "stable"), db)
	counted := &countedFile{file: s.f}
	s.f = counted
	sets := db.sets
	for term := uint64(1); term <= 100; term++ {
		counted.writes = 0
		if err := vote(s, term, "a"); err != nil {
			t.Fatal(err)
		}
		if counted.writes != 2 {
			t.Fatalf("%d writes in term %d", counted.writes, term)
		}
		if err := s.SetUint64(keyTerm, term); err != nil || counted.writes != 2 {
			t.Fatalf("%d writes: what stands there is written again (%v)", counted.writes, err)
		}
	}
	if db.sets != sets {
		t.Errorf("%d writes of the database", db.sets-sets)
	}
}

func TestTermAndCandidateAreNeverApart(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	s := openAt(t, path, db)
	if err := errors.Join(vote(s, 4, "a"), s.SetUint64(keyTerm, 5), s.SetUint64(keyVoteTerm, 5)); err != nil {
		t.Fatal(err)
	}
	check(t, s, 5, 4, "a") // half a vote is none
	check(t, openAt(t, path, db), 5, 4, "a")
	// A term that rises between is not to carry the half along.
	if err := errors.Join(s.SetUint64(keyTerm, 6), s.Set(keyVoteCandidate, []byte("b"))); err != nil {
		t.Fatal(err)
	}
	check(t, s, 6, 4, "b")
}

// brokenFile keeps what was written, cut off at a byte of a write: that is a crash.
type brokenFile struct {
	data []byte
	left int // bytes that are still written
}

var errCrash = errors.New("crash")

func (b *brokenFile) ReadAt(p []byte, at int64) (int, error) {
	if n := copy(p, b.data[at:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (b *brokenFile) WriteAt(p []byte, at int64) (int, error) {
	n := copy(b.data[at:], p[:min(b.left, len(p))])
	b.left -= n
	if n < len(p) {
		return n, errCrash
	}
	return n, nil
}

func (b *brokenFile) Close() error { return nil }

// reopen is what Open does with a file that is there.
func reopen(t *rapid.T, data []byte, db *mapDB) *Store {
	s := &Store{legacy: db, f: &brokenFile{data: bytes.Clone(data), left: 1 << 30}}
	whole, err := s.read()
	if err != nil || !whole {
		t.Fatalf("no slot is whole after a crash (%v)", err)
	}
	old, err := readLegacy(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.begin(old); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestACrashAtAnyByteLosesNothingThatWasTaken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		db := &mapDB{}
		first, err := encode(1, values{})
		if err != nil {
			t.Fatal(err)
		}
		s := reopen(t, append(first, make([]byte, fileSize-recordSize)...), db)
		term := uint64(0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			taken, next := s.now, s.now
			f := s.f.(*brokenFile)
			crash := rapid.IntRange(0, 3).Draw(t, "crash") == 0
			if f.left = 1 << 30; crash {
				f.left = rapid.IntRange(0, recordSize).Draw(t, "after bytes")
			}
			switch rapid.IntRange(0, 2).Draw(t, "act") {
			case 0:
				term += uint64(rapid.IntRange(0, 2*reserve).Draw(t, "rise"))
				next.current, err = term, s.SetUint64(keyTerm, term)
			case 1:
				next.voteTerm, next.candidate = term, []byte(rapid.StringN(0, 20, maxCandidate).Draw(t, "candidate"))
				err = errors.Join(s.SetUint64(keyVoteTerm, term), s.Set(keyVoteCandidate, next.candidate))
			case 2:
				err = s.SetUint64(keyVoteTerm, term+1) // and no candidate
			}
			if err == nil && !s.now.equal(next) || err != nil && !s.now.equal(taken) {
				t.Fatalf("%+v after %v; it was %+v and was to be %+v", s.now, err, taken, next)
			}
			if err == nil {
				taken = next
			}
			if !crash && rapid.Bool().Draw(t, "go on") {
				continue
			}
			s = reopen(t, f.data, db)
			if !s.now.equal(taken) && !s.now.equal(next) {
				t.Fatalf("%+v after a crash; it was %+v and was to be %+v", s.now, taken, next)
			}
			term = max(term, s.now.current)
			if s.now.current >= s.guarded || db.term(keyTerm) != s.guarded {
				t.Fatalf("term %d, guard %d (%d)", s.now.current, s.guarded, db.term(keyTerm))
			}
		}
	})
}

func TestAFailedWriteIsTriedInTheSameSlot(t *testing.T) {
	db := &mapDB{}
	s := openAt(t, filepath.Join(t.TempDir(), "stable"), db)
	if err := vote(s, 1, "a"); err != nil {
		t.Fatal(err)
	}
	slot, data := s.slot, make([]byte, fileSize)
	if _, err := s.f.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	broken := &brokenFile{data: data, left: 100}
	s.f = broken
	for range 3 {
		if err := vote(s, 2, "b"); !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		check(t, s, 1, 1, "a")
		broken.left = 60
	}
	broken.left = 1 << 20
	if err := s.SetUint64(keyTerm, 3); err != nil || s.slot == slot {
		t.Fatalf("slot %d after %d (%v)", s.slot, slot, err)
	}
	if _, _, v, ok, err := newest(data); !ok || err != nil || v.current != 3 || v.voteTerm != 1 {
		t.Fatalf("%+v %v %v", v, ok, err)
	}
}

// Every way of going back to an earlier version and coming again must keep a
// node from voting twice in a term.
func TestEarlierVersionsNeverFindATermThisOneHasVotedIn(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	// The earlier version has voted.
	for k, v := range map[string]uint64{"CurrentTerm": 7, "LastVoteTerm": 6} {
		if err := db.Set([]byte(k), binary.BigEndian.AppendUint64(nil, v)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Set(keyVoteCandidate, []byte("a")); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, path, db)
	check(t, s, 7, 6, "a")
	for term := uint64(8); term < 3*reserve; term += 100 {
		if err := vote(s, term, "b"); err != nil {
			t.Fatal(err)
		}
		if older := db.term(keyTerm); older <= term {
			t.Fatalf("an earlier version would start in term %d; this one has voted in %d", older, term)
		}
	}

	// After a crash this version goes on where it was, without jumping ahead.
	last, _ := s.GetUint64(keyTerm)
	s = openAt(t, path, db)
	check(t, s, last, last, "b")

	// The earlier version runs after a crash, and need not write anything else.
	term := db.olderStarts(t)
	s = openAt(t, path, db)
	check(t, s, term, last, "b")
	// It votes, too.
	term = db.olderStarts(t) + 3
	if err := errors.Join(db.Set(keyTerm, binary.BigEndian.AppendUint64(nil, term)),
		db.Set(keyVoteTerm, binary.BigEndian.AppendUint64(nil, term)), db.Set(keyVoteCandidate, []byte("c"))); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path, db)
	check(t, s, term, term, "c")

	// Closed in good order, there is nothing to jump over.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, vote := db.olderStarts(t), db.term(keyVoteTerm); got != term || vote != term {
		t.Errorf("an earlier version starts in term %d, having voted in %d; want %d", got, vote, term)
	}
	check(t, openAt(t, path, db), term, term, "c")
}

func TestDamagedFileIsMadeAnewFromASafeTerm(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	if err := vote(openAt(t, path, db), 5, "a"); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"short": func() error { return os.Truncate(path, 100) },
		"zeros": func() error { return os.WriteFile(path, make([]byte, fileSize), 0o600) },
		"gone":  func() error { return os.Remove(path) },
	} {
		before := db.term(keyTerm)
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		s := openAt(t, path, db)
		if check(t, s, before, 0, ""); !s.Renewed() {
			t.Errorf("%s: not told", name)
		}
		if db.term(keyTerm) <= before {
			t.Errorf("%s: no new guard", name)
		}
	}
}

func TestAFileOfALaterVersionIsRefused(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	b, err := encode(3, values{current: 5})
	if err != nil {
		t.Fatal(err)
	}
	b[5] = 2
	b = append(b, make([]byte, fileSize-len(b))...)
	binary.BigEndian.PutUint32(b[recordSize-4:], crcOf(b[:recordSize-4]))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, db); !errors.Is(err, errNewer) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "stable"), &mapDB{})
	_, err1 := s.Get(keyTerm)
	_, err2 := s.GetUint64(keyVoteCandidate)
	for i, err := range []error{err1, err2, s.Set(keyTerm, nil), s.SetUint64([]byte("x"), 1)} {
		if err == nil {
			t.Errorf("%d is taken", i)
		}
	}
	if err := s.Set(keyVoteCandidate, bytes.Repeat([]byte("x"), maxCandidate+1)); err == nil {
		t.Error("a candidate that does not fit is taken")
	}
}

func TestStoreIsForManyGoroutines(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	s := openAt(t, path, db)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 50 {
				if err := s.Set(keyVoteCandidate, fmt.Appendf(nil, "%d/%d", i, n)); err != nil {
					t.Error(err)
				}
				if _, err := s.Get(keyVoteCandidate); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	last, _ := s.Get(keyVoteCandidate)
	check(t, openAt(t, path, db), 0, 0, string(last))
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func TestNoTermIsTakenAheadOfItsGuard(t *testing.T) {
	path, db := filepath.Join(t.TempDir(), "stable"), &mapDB{}
	s := openAt(t, path, db)
	db.fail = errCrash
	if err := s.SetUint64(keyTerm, s.guarded); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	check(t, s, 0, 0, "")
	if err := s.SetUint64(keyTerm, s.guarded-1); err != nil {
		t.Fatal(err)
	}
}
