// Package backend makes the servers that a load balancer's endpoints run in the
// lab, with a behaviour that is switched while they run: a [Server] is well, is
// dead, hangs, fails, is slow, or flaps, and comes back.
//
// What each behaviour is, depends on the protocol, and is meant to be what the
// process of a real server does:
//
//	        Dead                    Hangs                    Fails
//	TCP     port closed: RST        accepts, never answers   accepts, then RST
//	HTTP    port closed: RST        accepts, never answers   500
//	HTTPS   port closed: RST        no TLS handshake         500
//	GRPC    port closed: RST        accepts, never answers   NOT_SERVING
//	UDP     port unreachable        never answers            another answer
//	SCTP    ABORT for an INIT       never answers            ABORT for an INIT
//
// A server that hangs goes on with what it has read as soon as it is well again.
// A slow one takes its delay for each request.
//
// TCP is a traffic.Server, so it also checks every byte that long-lived clients
// send, and answers to a GET. SCTP answers an INIT on a raw socket, as a kernel
// with SCTP does, and carries no data: it is there to be probed.
//
// The package knows nothing of namespaces: a [Place] opens its sockets. ICMP echo
// is no server's matter, but its host's.
package backend
