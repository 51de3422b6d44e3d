// Package lab builds whole networks inside one machine and runs the product
// in them: nodes, clients and endpoints live in network namespaces that are
// joined by bridges, and each node is a real process of the product binary
// with its own data, run and pin directory.
//
// It serves `pontoon demo`, the end-to-end tests and the benchmarks. To the
// lab the product is a black box: a binary that is started with the flags of
// the contract, spoken to through its command line or its Unix socket. For
// that reason the lab imports none of Pontoon's packages and everything may
// import the lab.
//
// # What is built
//
// A segment is one Ethernet: a bridge in a namespace of its own, without
// spanning tree and without multicast snooping, so that a frame is forwarded
// the moment a port is up. A host is a namespace with a veth leg into each of
// its segments, with an IPv4 and an IPv6 address on each. Offloads are left on.
// The namespaces are named ones (/run/netns/PREFIX-HOST), so an operator looks
// inside with
//
//	nsenter --net=/run/netns/PREFIX-lb1 ip address
//
// `ip netns exec` works too, but it hides /sys/fs/bpf from what it starts.
//
// Three topologies exist, see [TwoLeg], [OneLeg] and [Routed].
//
// # How failures are made
//
// Every failure acts on the outside of a node, as in life. [Node.LinksDown]
// takes the segment's side of the cables down, so that the node sees no
// carrier. [Node.PowerOff] does the same, kills the process, and then forgets
// the node's kernel: pins, interfaces, addresses, the namespace itself. What
// [Node.PowerOn] brings back is a machine that kept its disk (the data
// directory) and its hardware addresses and nothing else.
//
// Servers that fail are in package backend, bad cables in package impair; a
// host answers no pings after [Host.AnswerPings].
//
// # What is left behind
//
// Nothing. [Lab.Close] removes namespaces, processes, pins and files, also
// after a New that failed half way. Processes are killed by the kernel when
// this process dies (PR_SET_PDEATHSIG), unless [Config.Detach] was asked for.
// What a killed demo could not remove is found by [Leftovers] and removed by
// [Clean] from the state file in the lab's directory.
//
// The package refuses to run on anything but Linux as root; [Preflight] says
// what is missing and how to mend it.
package lab
