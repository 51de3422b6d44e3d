// Package health probes endpoints and concludes which are up: TCP, HTTP, HTTPS, ICMP, UDP, SCTP and gRPC,
// and TCP, UDP and ICMP through the VIP of a service whose endpoints answer clients directly.
//
// It refuses to decide what a verdict means. Who commits it, who uses a dead endpoint all the same and
// what becomes of its connections is somebody else's; nothing here knows of services or of other nodes.
//
// # How it is built
//
// A machine concludes: it counts probes in a row, is a value and has a pure step. The board holds a
// machine for every different subject (address and probe; targets that ask for the same share it) and
// decides which is probed when. It reads no clock and sends nothing, and so ten thousand targets over an
// hour are a unit test of a second. The loop is the thin rest: one goroutine with one epoll descriptor,
// which begins what the board says is due and brings back how it ended. What is asked by single packets
// or plain connections is done by the loop itself, with descriptors that it never blocks on: a probe
// costs its system calls and no goroutine, timer or buffer of its own. The epoll descriptor is watched by
// the runtime's own poller, and so no thread is blocked either while the loop rests. Only TLS and HTTP/2
// get a goroutine for each probe, at most a quarter of Options.Concurrent at a time.
//
// # When probes are sent
//
// Each check has its time: the beginning of its last probe and the interval, less up to 5 % by chance so
// that checks do not fall into step. An interval is never made longer, since the time in which a death is
// found is promised in intervals: Fall of them and the timeout. A timeout longer than the interval delays
// the next probe: a check has one under way at most. Every probe needs a permit of Options.Rate a second,
// and Options.Concurrent bounds those under way; what must wait goes in the order in which it was due.
//
// Endpoints that hang have their probes under way for the whole timeout, and there may be thousands. So
// probes by the loop, probes by goroutines, and those of the latter whose last one failed are counted
// apart, and none of the three waits for another. At the default timers 12000 endpoints may hang before
// others are delayed; 2000 of those that goroutines probe, and then only those of them whose last probe failed.
//
// New checks are spread over their interval. If nothing at all is known about them a few are probed at
// once, each given a millisecond; many take the whole interval. When the factor of a target falls, as on
// a take-over, its next probe comes within the new interval. So neither ten thousand new targets nor a
// restart nor a take-over make a storm, and a burst of calls of Want is one look at the newest.
//
// # Time that was not lived through
//
// The loop's clock stands still while the loop does not run: a suspended machine, a stopped process, a
// hypervisor that gives the processor to others. Otherwise all answers that came meanwhile would be too
// late and all checks overdue when it goes on. So a pause of this node delays verdicts and never makes
// one. Answers are read before deadlines are looked at. What this node itself is to blame for (no
// descriptors left, the source address is not here, its firewall) is void: it is reported in LastError and
// counts for nothing.
//
// # Conclusions
//
// Fall failures in a row take an endpoint down and Rise passes bring it back; counting begins from what
// the target says is known. While nothing is known one pass is enough, since an endpoint of which nothing
// is known is used anyway. Flapping is damped as in RFC 2439: a fall is a point, points fade by half in a
// minute, and an endpoint with two and a half (three falls in half a minute) is flapping until less than
// one is left. A flapping endpoint needs twice to sixteen times Rise to come back, but never more passes
// than fit into a minute; going down is never damped.
//
// # Raw packets
//
// ICMP and SCTP use one raw socket per family for all targets, opened by the first probe that needs it
// (CAP_NET_RAW). Answers find their probe by a number in the packet, and are believed when the source
// address and a random token fit. SCTP (RFC 9260) sends INIT, wants INIT ACK and answers ABORT; the kernel
// of neither side of the load balancer needs to know SCTP. Probes through a VIP are explained in path.go.
//
// Connections are closed by a reset, so that ten thousand endpoints at two seconds leave no TIME_WAIT
// behind. A server that only accepts sees a connection that was reset.
package health
