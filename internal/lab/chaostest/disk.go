package chaostest

import "pontoon/internal/lab"

// hurtDisk makes a node's disk slow, broken or full.
func (r *run) hurtDisk(n *lab.Node, f Fault) (done, error) {
	return done{}, errNotNow
}
