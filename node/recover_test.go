package node

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

func TestARecoveryIsRefusedUnlessEverythingSpeaksForIt(t *testing.T) {
	alone := recoverFacts{self: "lb1", voter: true, others: []fsm.NodeID{"lb2", "lb3", "w1"}}
	all := alone.others
	for _, tc := range []struct {
		name   string
		change func(*recoverFacts)
		fenced []fsm.NodeID
		kind   error
		words  string
	}{
		{"all is as it must be", func(*recoverFacts) {}, all, nil, ""},
		{"a leader is heard", func(f *recoverFacts) { f.led = true }, all, fsm.ErrInUse, "has a leader"},
		{"it was removed", func(f *recoverFacts) { f.removed = true }, all, fsm.ErrInUse, "removed from its cluster"},
		{"it has no vote", func(f *recoverFacts) { f.voter = false }, all, fsm.ErrInUse, "lb1 has no vote"},
		{"a witness is not named", func(*recoverFacts) {}, all[:2], fsm.ErrInvalid, "w1 is not named"},
		{"two are not named", func(*recoverFacts) {}, all[:1], fsm.ErrInvalid, "lb3 and w1 are not named"},
		{"nobody is named", func(*recoverFacts) {}, nil, fsm.ErrInvalid, "lb2, lb3 and w1 are not named"},
		{"a stranger is named", func(*recoverFacts) {}, append([]fsm.NodeID{"lb9"}, all...), fsm.ErrNotFound, "lb9 is no member"},
		{"itself is named", func(*recoverFacts) {}, append([]fsm.NodeID{"lb1"}, all...), fsm.ErrInvalid, "lb1 is this node"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := alone
			tc.change(&f)
			err := checkRecover(f, tc.fenced)
			switch {
			case tc.kind == nil && err != nil, tc.kind != nil && !errors.Is(err, tc.kind):
				t.Errorf("%v, want %v", err, tc.kind)
			case err != nil && !strings.Contains(err.Error(), tc.words):
				t.Errorf("%q does not say %q", err, tc.words)
			}
		})
	}
}

func TestALaterRecoverySupersedesAndNothingElse(t *testing.T) {
	s := recoveredOnce(t)
	for _, tc := range []struct {
		a    memberAnswer
		want bool
	}{
		{memberAnswer{Member: false, Recoveries: 2}, true},
		{memberAnswer{Member: true, Recoveries: 2}, false},
		{memberAnswer{Member: false, Recoveries: 1}, false},
		{memberAnswer{Member: false, Recoveries: 0}, false},
	} {
		if got := supersedes(s, tc.a); got != tc.want {
			t.Errorf("%+v: %v", tc.a, got)
		}
	}
}

func recoveredOnce(t *testing.T) *fsm.State {
	t.Helper()
	_, s := history(t, oneNode(fsm.RecoverCluster{Survivor: "lb1", GossipKey: make([]byte, 32)})...)
	return s
}

// threeOnDisk is the directory of lb1 of a group of three that has a log.
func threeOnDisk(t *testing.T) (dataDir string, last uint64) {
	t.Helper()
	dataDir = t.TempDir()
	st, err := openStores(raftDir(dataDir), raftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	group := onlyVoter("lb1", "192.0.2.1:7400")
	for _, n := range []string{"2", "3"} {
		group.Servers = append(group.Servers, raft.Server{ID: raft.ServerID("lb" + n), Address: raft.ServerAddress("192.0.2." + n + ":7400")})
	}
	_, inmem := raft.NewInmemTransport("")
	conf := raftConfig("lb1", raftLogger(slog.New(slog.DiscardHandler)))
	if err := raft.BootstrapCluster(conf, st.bolt, st.votes, st.snaps, inmem, group); err != nil {
		t.Fatal(err)
	}
	for i, c := range oneNode(fsm.PutInstance{Name: "blue"}, fsm.PutInstance{Name: "red"}) {
		last = uint64(2 + i)
		l := entry(t, last, c)
		l.Term = 1
		if err := st.bolt.StoreLog(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	return dataDir, last
}

// onDisk opens the group as a daemon does at its start and closes it again.
func onDisk(t *testing.T, dataDir string) (servers []raft.Server, s *fsm.State, pending *recovery) {
	t.Helper()
	m := &member{store: newStore(), logger: slog.New(slog.DiscardHandler), cfg: Config{Name: "lb1", DataDir: dataDir}}
	st, err := openStores(raftDir(dataDir), raftLogger(m.logger))
	if err != nil {
		t.Fatal(err)
	}
	_, inmem := raft.NewInmemTransport("192.0.2.1:7400")
	r, err := raft.NewRaft(raftConfig("lb1", raftLogger(m.logger)), m.store, st.bolt, st.votes, st.snaps, inmem)
	if err != nil {
		t.Fatal(err)
	}
	m.raft = &raftGroup{Raft: r}
	defer func() {
		if err := errors.Join(r.Shutdown().Error(), st.close()); err != nil {
			t.Error(err)
		}
	}()
	if err := m.resumeRecovery(); err != nil {
		t.Fatal(err)
	}
	servers, err = m.raft.servers()
	if err != nil {
		t.Fatal(err)
	}
	return servers, m.store.State(), m.recovery.Load()
}

func TestARecoveryCutShortBeforeTheFilesIsNone(t *testing.T) {
	dataDir, _ := threeOnDisk(t)
	if err := (recovery{Number: 1, Fenced: []fsm.NodeID{"lb2", "lb3"}}).save(dataDir); err != nil {
		t.Fatal(err)
	}
	servers, _, pending := onDisk(t, dataDir)
	if len(servers) != 3 || pending != nil {
		t.Errorf("servers %v, to be finished %v: want the old group", servers, pending)
	}
	if _, err := os.Stat(filepath.Join(dataDir, recoveryFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestARecoveryCutShortAfterTheFilesIsFinished(t *testing.T) {
	dataDir, last := threeOnDisk(t)
	if err := (recovery{Number: 1, Fenced: []fsm.NodeID{"lb2", "lb3"}}).save(dataDir); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	index, err := rebuildRaft(raftDir(dataDir), "lb1", "192.0.2.1:7400", logger)
	if err != nil || index != last {
		t.Fatalf("index %d, %v, want %d", index, err, last)
	}
	check := func(when string) {
		t.Helper()
		servers, s, pending := onDisk(t, dataDir)
		if len(servers) != 1 || servers[0].ID != "lb1" || servers[0].Suffrage != raft.Voter || pending == nil || pending.Number != 1 {
			t.Errorf("%s: servers %v, to be finished %v", when, servers, pending)
		}
		if _, ok := s.Instance("red"); !ok || s.Index() != last {
			t.Errorf("%s: the state is at %d and has %v", when, s.Index(), s.Instances())
		}
	}
	check("rebuilt")

	// Power was lost between the snapshot and the cutting of the log.
	st, err := openStores(raftDir(dataDir), raftLogger(logger))
	if err != nil {
		t.Fatal(err)
	}
	old, _ := threeOnDisk(t)
	from, err := openStores(raftDir(old), raftLogger(logger))
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		if err := errors.Join(from.bolt.GetLog(i, &l), st.bolt.StoreLog(&l)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(st.close(), from.close()); err != nil {
		t.Fatal(err)
	}
	check("with the old log")
}

func TestALogThatCannotBeReadIsNotRebuiltFrom(t *testing.T) {
	dataDir, last := threeOnDisk(t)
	st, err := openStores(raftDir(dataDir), raftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	l := &raft.Log{Index: last + 1, Term: 1, Type: raft.LogCommand, Data: []byte(`{"v":999,"type":"x","data":{}}`)}
	if err := errors.Join(st.bolt.StoreLog(l), st.close()); err != nil {
		t.Fatal(err)
	}
	if _, err := rebuildRaft(raftDir(dataDir), "lb1", "192.0.2.1:7400", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "version 999") {
		t.Errorf("%v", err)
	}
	if servers, _, _ := onDisk(t, dataDir); len(servers) != 3 {
		t.Errorf("servers %v, want the old group", servers)
	}
}
