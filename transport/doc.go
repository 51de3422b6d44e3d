// Package transport is how Pontoon's nodes talk to each other.
//
// It holds four things that fit together but do not need each other:
//
//   - Identity: the cluster's certificate authority, one key and certificate per
//     node, and the join token that lets a new node trust the cluster and the
//     cluster trust the new node.
//   - Mux: the one TCP port of a node. TLS 1.3 with mutual authentication; the
//     ALPN protocol of a connection says which subsystem it is for.
//   - RaftLayer: the stream layer that hashicorp/raft runs on.
//   - Gossip: encrypted membership and failure detection (memberlist), and
//     HostAlive, which tells a dead machine from a dead daemon.
//
// Flow replication lives here as well and is described in REPLICATION.md.
//
// The package decides nothing about membership: who is a member is asked of the
// caller (MuxConfig.Authorize), and what gossip sees is reported, not acted on.
// It imports nothing else of Pontoon. See DESIGN.md for the reasons.
package transport
