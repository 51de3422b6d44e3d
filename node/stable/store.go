package stable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// The keys hashicorp/raft uses, all there are.
var (
	keyTerm          = []byte("CurrentTerm")
	keyVoteTerm      = []byte("LastVoteTerm")
	keyVoteCandidate = []byte("LastVoteCand")
)

// file is what a store writes to; os.File in life.
type file interface {
	io.ReaderAt
	io.WriterAt // returns when the bytes are on the disk
	io.Closer
}

// Store keeps the values. It has the methods of raft.StableStore and may be
// used from any goroutine.
//
// What Set and SetUint64 have taken is on the disk when they return, with one
// exception: Raft sets LastVoteTerm and right after it LastVoteCand, and acts only
// on both. The first of the two is kept back and written with the second, so that
// term and candidate are never apart.
type Store struct {
	mu       sync.Mutex
	f        file
	legacy   Legacy
	seq      uint64 // of the newest record, or beyond
	slot     int    // where it is
	now      values
	guarded  uint64 // the term the legacy database has; always above now.current
	pending  bool   // voteTerm was set and waits for its candidate
	voteTerm uint64
	closed   bool
	renewed  bool
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("the stable store is closed")

// Open opens the file, or makes it from what legacy says. A file of which no slot
// is whole, which no crash can bring about, is made anew from the guard in legacy,
// and so is one that is gone; see Renewed.
func Open(path string, legacy Legacy) (*Store, error) {
	old, err := readLegacy(legacy)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &Store{legacy: legacy}
	whole, err := s.open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if !whole {
		s.renewed = old.guarded
		if s.f != nil {
			err = s.f.Close()
			s.f = nil
		}
		if err = errors.Join(err, create(path, merge(values{}, false, old))); err == nil {
			whole, err = s.open(path)
		}
		if err == nil && !whole {
			err = errors.New("what was written does not read back")
		}
	}
	if err == nil {
		err = s.begin(old)
	}
	if err != nil {
		if s.f != nil {
			err = errors.Join(err, s.f.Close())
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

// Renewed says that the file was lost, so that the node begins in a later term
// than it was in.
func (s *Store) Renewed() bool { return s.renewed }

// open reads the file; it is not there when s.f stays nil.
func (s *Store) open(path string) (whole bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DSYNC, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	s.f = f
	return s.read()
}

func (s *Store) read() (whole bool, err error) {
	b := make([]byte, fileSize)
	if n, err := s.f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	} else if n < fileSize {
		return false, nil
	}
	s.seq, s.slot, s.now, whole, err = newest(b)
	return whole, err
}

// create makes the file with one record, all of it or none.
func create(path string, v values) error {
	record, err := encode(1, v)
	if err != nil {
		return err
	}
	b := make([]byte, fileSize)
	copy(b, record)
	if err := renameio.WriteFile(path, b, 0o600, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// begin takes over what an earlier version did meanwhile, and then guards
// against the next one.
func (s *Store) begin(old found) error {
	v := merge(s.now, true, old)
	s.guarded = old.current
	if !old.guarded {
		s.guarded = 0
	}
	if v.equal(s.now) && s.guarded > v.current {
		return nil
	}
	return s.write(v)
}

// Set implements raft.StableStore for LastVoteCand.
func (s *Store) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(key, keyVoteCandidate) {
		return fmt.Errorf("set %q: it is none of the values kept here", key)
	}
	next := s.now
	next.candidate = bytes.Clone(value)
	if s.pending {
		next.voteTerm = s.voteTerm
	}
	s.pending = false
	return s.write(next)
}

// SetUint64 implements raft.StableStore for CurrentTerm and LastVoteTerm.
func (s *Store) SetUint64(key []byte, value uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case bytes.Equal(key, keyVoteTerm):
		s.pending, s.voteTerm = true, value
		return nil
	case bytes.Equal(key, keyTerm):
		s.pending = false
		next := s.now
		next.current = value
		return s.write(next)
	}
	return fmt.Errorf("set %q: it is none of the values kept here", key)
}

// Get implements raft.StableStore for LastVoteCand.
func (s *Store) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(key, keyVoteCandidate) {
		return nil, fmt.Errorf("get %q: it is none of the values kept here", key)
	}
	return bytes.Clone(s.now.candidate), nil
}

// GetUint64 implements raft.StableStore for CurrentTerm and LastVoteTerm; what
// was never set is 0.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case bytes.Equal(key, keyTerm):
		return s.now.current, nil
	case bytes.Equal(key, keyVoteTerm):
		return s.now.voteTerm, nil
	}
	return 0, fmt.Errorf("get %q: it is none of the values kept here", key)
}

// write puts v on the disk, in the slot that does not hold the newest record. On
// an error v may or may not be there; what was there before certainly is, and
// counts for as long as this process lives. The next write goes to the same slot.
func (s *Store) write(v values) error {
	if s.closed {
		return ErrClosed
	}
	if v.current >= s.guarded {
		if err := guard(s.legacy, v.current+reserve); err != nil {
			return err
		}
		s.guarded = v.current + reserve
	}
	if v.equal(s.now) {
		return nil
	}
	s.seq++ // also of a write that fails: no number means two things
	record, err := encode(s.seq, v)
	if err != nil {
		return err
	}
	slot := 1 - s.slot
	if _, err := s.f.WriteAt(record, int64(slot*slotSpace)); err != nil {
		return fmt.Errorf("write term and vote: %w", err)
	}
	s.slot, s.now = slot, v
	return nil
}

// Close hands the values back to the legacy database, so that an earlier version
// may follow without an election. Not to have called it harms nobody.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(handBack(s.legacy, s.now), s.f.Close())
}
