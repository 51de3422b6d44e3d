package node

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// stubLog is a log whose writes take a while and end as told.
type stubLog struct {
	raft.LogStore
	takes time.Duration
	err   error
}

func (l *stubLog) StoreLogs([]*raft.Log) error {
	<-time.After(l.takes)
	return l.err
}

func (l *stubLog) DeleteRange(uint64, uint64) error { return l.err }

func TestTroubleWithTheDiskIsSeenWhileItLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var watch diskWatch
		stub := &stubLog{takes: diskPatience / 2}
		log := watchedLog{stub, &watch}
		expect := func(when, want string) {
			t.Helper()
			if got := watch.trouble(time.Now()); (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		write := func(log raft.LogStore) <-chan error {
			done := make(chan error, 1)
			go func() { done <- log.StoreLog(&raft.Log{}) }()
			synctest.Wait()
			return done
		}
		if !watch.rests(time.Now()) {
			t.Error("a disk nobody has used does not rest")
		}
		done := write(log)
		expect("while a write goes on", "")
		if watch.rests(time.Now()) {
			t.Error("it rests while a write goes on")
		}
		if err := <-done; err != nil || watch.rests(time.Now()) {
			t.Error(err, "or it rests right after")
		}
		<-time.After(diskTick)
		if !watch.rests(time.Now()) {
			t.Error("it never rests again")
		}

		stub.takes = 3 * diskPatience
		done = write(log)
		<-time.After(diskPatience)
		expect("while a write hangs", "hangs")
		<-done
		expect("when it has ended", "")

		stub.takes, stub.err = 0, errors.New("no space")
		if err := log.StoreLog(&raft.Log{}); !errors.Is(err, stub.err) {
			t.Error(err)
		}
		expect("after a failure", "no space")
		stub.err = nil
		if err := log.DeleteRange(1, 2); err != nil {
			t.Error(err)
		}
		expect("after a success", "")
	})
}

// stubVotes refuses so many writes.
type stubVotes struct {
	raft.StableStore
	refuse int
	term   uint64
}

func (v *stubVotes) Set(_, _ []byte) error { return v.SetUint64(nil, v.term) }

func (v *stubVotes) SetUint64(_ []byte, term uint64) error {
	if v.refuse > 0 {
		v.refuse--
		return errors.New("no space")
	}
	v.term = term
	return nil
}

func TestATermIsWrittenHoweverLongItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		stub := &stubVotes{refuse: 50}
		votes := patientVotes{stub, &diskWatch{}, over}
		if err := votes.SetUint64(nil, 7); err != nil || stub.term != 7 {
			t.Errorf("%v, term %d", err, stub.term)
		}
		stub.refuse = 1
		if err := votes.Set(nil, nil); err == nil {
			t.Error("a vote that could not be written was given")
		}
		if err := votes.Set(nil, nil); err != nil || votes.watch.trouble(time.Now()) != "" {
			t.Errorf("a vote: %v, %q", err, votes.watch.trouble(time.Now()))
		}
		stub.refuse = 1 << 30
		done := make(chan error, 1)
		go func() { done <- votes.SetUint64(nil, 8) }()
		<-time.After(2 * voteRetry) // nobody waits for what is known
		if got := votes.watch.trouble(time.Now()); !strings.Contains(got, "no space") {
			t.Errorf("told is %q", got)
		}
		close(over)
		if err := <-done; err != nil || stub.term != 7 {
			t.Errorf("at the end: %v, term %d", err, stub.term)
		}
	})
}
