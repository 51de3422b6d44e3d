// Package detect finds out within tens of milliseconds that a neighbour is
// gone: Bidirectional Forwarding Detection, RFC 5880, on single hops, RFC 5881,
// over IPv4 and IPv6, and echoes that the neighbour's data plane sends back by
// itself (unaffiliated BFD echo, RFC 9747).
//
// What a session does is decided by Machine, a value with a pure Step function;
// what an echo prober concludes by Prober, likewise. Driver gives them sockets
// and a clock.
//
// The package refuses to draw conclusions about nodes or routes: it tells what
// a session's state is, and somebody else what that means. Demand mode is honoured
// when the neighbour asks for it and never asked for. Authentication sections are
// not spoken: what is accepted has crossed one hop (TTL 255, RFC 5082).
package detect
