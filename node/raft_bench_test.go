package node

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"pontoon/node/stable"
)

// BenchmarkVote is what a node writes before it votes in a later term: the term,
// then the vote in it. Beside the store of votes stands the log's database, where
// earlier versions kept both. TMPDIR says on which disk.
func BenchmarkVote(b *testing.B) {
	dir := b.TempDir()
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(dir, "log.db"), BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		b.Fatal(err)
	}
	votes, err := stable.Open(filepath.Join(dir, "stable"), boltKeys{bolt})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(votes.Close(), bolt.Close()); err != nil {
			b.Error(err)
		}
	})
	term := uint64(0)
	for name, store := range map[string]raft.StableStore{"database": bolt, "slots": votes} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				term++
				err := errors.Join(store.SetUint64([]byte("CurrentTerm"), term), store.SetUint64([]byte("LastVoteTerm"), term),
					store.Set([]byte("LastVoteCand"), []byte("192.0.2.11:7400")))
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
