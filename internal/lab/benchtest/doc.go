// Package benchtest compares load balancers in one lab: the same clients, the
// same servers, the same cables, and between them one of several machines that
// forward.
//
// # What is built
//
// One client host and one server host are joined by a machine for each
// contender, over direct veth cables and not over the lab's bridges, whose
// cost would hide what is compared:
//
//	client f0 ── front [lb1] back ── b0 server
//	client f1 ── front [lb2] back ── b1 server
//	client d0 ───────────────────── d0 server   (no machine between)
//
// Each contender has subnets of its own, so that changing from one to the
// next is a change of the target address and nothing is reconfigured in a run.
// All contenders are up all the time; an idle one costs nothing but, in the
// case of a daemon, its timers.
//
// # What is measured
//
// Bulk TCP, new TCP connections, small UDP packets; see [Workload]. Rounds are
// interleaved: each workload goes through all contenders before the next one,
// so that a machine whose speed drifts drifts for all of them, and ratios are
// made inside a round.
//
// Small packets are made by the kernel's own test run of an XDP program in
// live mode (Documentation/bpf/bpf_prog_run.rst), which enter the load
// balancer as frames, as from a network card, and are counted and dropped by a
// program on the server's cable. A sender made of sockets would be slower than
// everything it shall measure.
//
// Everything shares the machine's processors. So what a contender costs is the
// busy time of the whole machine per unit of work, less the same without any
// machine between ("direct"). Interrupt time is accounted for by whoever it
// interrupts, so no finer division would be honest.
//
// It imports the testing world's tools (programs of others, packet generators)
// and no product package; only tests and benchmarks import it.
package benchtest
