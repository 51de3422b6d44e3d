// Package fsm is Pontoon's replicated state: its types, the commands that
// change it, their validation, master election and snapshots.
//
// Everything here is pure. Apply reads no clock, no random source, no
// environment and no map in iteration order, so that the same log yields the
// same bytes on every node. Times and random values a command needs are put
// into the command by whoever proposes it.
//
// A State never changes once it has been handed out, so it may be shared
// between goroutines without a lock. Apply returns a new State that shares
// everything the command did not touch with the old one.
//
// The JSON-tagged types are the product's one vocabulary: the HTTP API, the
// YAML files, the command line and the Raft log all speak them.
//
// The package refuses to know about time, transport, the kernel and Raft
// itself; it is handed a log index and a command, and nothing else. The why of
// it all is in DESIGN.md.
package fsm
