// Package chaostest hurts clusters at random and proves that nothing false came of
// it. A seed draws faults and their times ([Draw]); [Run] builds a lab, starts the
// real daemons, lets the faults happen while clients, a writer of configuration and
// observers are at work, heals everything and waits until the cluster is whole. What
// was seen is a [History], and [Check], which is pure, holds it against the
// invariants.
//
// The observers stand outside: who answers for an address is asked by ARP from
// hosts of their own, what became of connections is told by their payload, and what
// became of configuration by reading it back from every node. The product's own
// opinion (master, epoch, ready) is recorded too, because the opinions of several
// nodes must not contradict each other, nor what is seen from outside.
//
// A run is not repeatable to the microsecond, since real processes race, but the
// faults of a seed and their times are always the same.
package chaostest
