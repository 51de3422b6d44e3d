// Package announce tells the network where a virtual IP lives.
//
// There are two ways. BGP tells neighbouring routers which prefixes lead to this
// node, and learns from them; it is described at its type. Everything else here is
// about L2.
//
// A Speaker is given the whole set of addresses this node must announce, as
// often as the caller likes, and finds out by itself what is new. L2 is the
// speaker for a shared Ethernet segment: gratuitous ARP for IPv4, unsolicited
// neighbour advertisements for IPv6, in a burst when an address is new or its
// mastership was decided again, then repeated at growing distance, and again
// whenever another machine claims the address.
//
// The burst is closer than RFC 4861 section 7.2.6 asks for, which wants a second
// between advertisements and no more than three: a lost one is a blackout until
// the neighbours find out by themselves, and five small frames in five seconds
// burden nobody.
//
// What to say when is decided by a pure schedule (schedule.go), what a frame
// looks like by two pure codecs (arp.go, ndp.go); l2.go and run.go only carry
// frames and time between them and the packet sockets (wire.go).
//
// The package decides no mastership, sets no address and answers no request:
// the kernel does that for the addresses the host holds. It cannot take an
// announcement back either, because ARP and NDP know no such thing; whoever takes
// over announces louder. L2Config.Fence is the guard against speaking when the right to has
// run out unnoticed.
package announce
