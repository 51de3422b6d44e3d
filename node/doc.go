// Package node is one running member of a Pontoon cluster. It owns every
// goroutine of the daemon and turns committed state into action: it joins
// Raft, gossip, flow replication, the data plane, the host's addresses and
// the announcements together, and decides nothing that fsm or node/plan can
// decide purely.
//
// It refuses to forward packets, to elect masters or to parse other people's
// protocols: those are bpf, fsm and the packages beside it.
package node
