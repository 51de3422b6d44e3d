// Package stable keeps the three values that a Raft node must not forget
// (CurrentTerm, LastVoteTerm, LastVoteCand; Ongaro's dissertation, 3.8) in a file
// of two preallocated slots, written in turn. Each write is one system call that
// returns when the bytes are on the disk (O_DSYNC), so a vote costs two of them and
// not three transactions of a database. It knows nothing of Raft itself, and keeps
// nothing else.
package stable
