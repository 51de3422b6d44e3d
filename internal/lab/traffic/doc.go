// Package traffic makes TCP connections that can prove what happened to them.
//
// Both directions of a connection carry numbered frames, each with a payload
// that follows from the connection's id and the frame's number and with a
// CRC-32C over all of it. A lost, doubled, reordered, altered or misdirected
// byte is therefore seen at the next frame. [Server] is the endpoint's side,
// [Clients] drives many long-lived connections, [Prober] opens short ones.
//
// # How a blackout is measured
//
// Each long-lived client sends a frame at every interval (100 ms unless told
// otherwise) whether or not answers come, and notes when a valid answer
// arrives. Its gap is the longest time between two successive answers. The
// blackout of a failure is the greatest gap of all connections. Nothing is
// subtracted: a network without any failure shows a gap of about one interval
// (with its jitter), so this is what an application would have felt,
// including the time TCP took to retransmit.
//
// # Progress
//
// That a connection lives is not believed because no error was seen. The
// answer names the frame it answers, and a connection counts as going on only
// when a frame that was first sent after the mark has been answered.
//
// The package knows nothing of namespaces: it is handed a dial function and a
// listener.
package traffic
