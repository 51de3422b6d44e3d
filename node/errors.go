package node

import (
	"errors"

	"pontoon/fsm"
	"pontoon/web"
)

// errNotLeader says that a command was certainly not taken because the node it
// reached does not lead (any more); it may be sent again.
var errNotLeader = errors.New("not the leader")

// errUnknownOutcome says that leadership was lost while a command was in
// flight: it may or may not have been committed.
var errUnknownOutcome = errors.New("the leader changed while the change was being committed, so it may or may not have happened: look before you repeat it")

// errBehind says that a command was committed, but that this node does not know
// its outcome yet.
var errBehind = errors.New("the change was committed, but this node has not caught up yet: see `pontoon status`")

// errorKinds are the sentinels that keep their meaning when an error crosses
// from one node to another.
var errorKinds = []struct {
	kind string
	err  error
}{
	{"not_found", fsm.ErrNotFound},
	{"changed", fsm.ErrChanged},
	{"exists", fsm.ErrExists},
	{"invalid", fsm.ErrInvalid},
	{"not_initialised", fsm.ErrNotInitialised},
	{"already_initialised", fsm.ErrAlreadyInitialised},
	{"in_use", fsm.ErrInUse},
	{"token_invalid", fsm.ErrTokenInvalid},
	{"node_down", fsm.ErrNodeDown},
	{"resting", errResting}, // before what it is a kind of
	{"not_eligible", fsm.ErrNotEligible},
	{"stale", fsm.ErrStale},
	{"no_leader", web.ErrNoLeader},
	{"not_leader", errNotLeader},
	{"unknown_outcome", errUnknownOutcome},
}

// remoteError is an error another node answered with: its words, and what
// errors.Is should say of it here.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func kindOf(err error) string {
	for _, k := range errorKinds {
		if errors.Is(err, k.err) {
			return k.kind
		}
	}
	return ""
}

func errorOf(kind, text string) error {
	for _, k := range errorKinds {
		if k.kind == kind {
			return &remoteError{text: text, kind: k.err}
		}
	}
	return errors.New(text)
}
