//go:build !pontoon_faults

package node

import (
	"github.com/hashicorp/raft"
)

// injectLog leaves Raft's log as it is; see faults_on.go for the other build.
func injectLog(_ string, log raft.LogStore) raft.LogStore { return log }

// injectVotes leaves Raft's stable store as it is.
func injectVotes(_ string, votes raft.StableStore) raft.StableStore { return votes }
