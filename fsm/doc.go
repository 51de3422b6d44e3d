// Package fsm is Pontoon's replicated state: its types, the commands that
// change it, their validation, master election and snapshots.
//
// Everything here is pure. Apply reads no clock, no random source, no
// environment and no map in iteration order, so that the same log yields the
// same bytes on every node. Times and random values a command needs are put
// into the command by whoever proposes it.
//
// The JSON-tagged types are the product's one vocabulary: the HTTP API, the
// YAML files, the command line and the Raft log all speak them.
package fsm
