// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Shared types of the data plane. Every struct here is mirrored in Go by bpf2go
 * (see ../generate.go); sizes are asserted on both sides. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The UAPI headers of a C library drag in 32 bit stubs on a bpf target, so the few
 * constants that live outside them are written out. */
#define AF_INET 2
#define AF_INET6 10
#define EBUSY 16
#define EEXIST 17
#define ICMP_ECHO_REQUEST 8
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_NDP_FIRST 133 /* router solicitation */
#define ICMP6_NDP_LAST 137  /* redirect */
#define VLAN_HLEN 4

/* An address on 128 bits; IPv4 is mapped (::ffff:a.b.c.d). */
struct addr {
	union {
		__u8 b[16];
		__be32 w[4];
		__u64 d[2];
	};
};

/* The tuple as it is seen on the wire, before any rewriting. */
struct flow_key {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

/* States below FLOW_ESTABLISHED live in half_open only, the others in flows only. */
enum flow_state {
	FLOW_NONE = 0,
	FLOW_SYN = 1,         /* first packet seen (also: UDP seen one way) */
	FLOW_SYNACK = 2,      /* the endpoint accepted */
	FLOW_REFUSED = 3,     /* reset before it was complete */
	FLOW_ESTABLISHED = 4, /* handshake complete; UDP seen both ways */
	FLOW_FIN = 5,         /* one side has closed */
	FLOW_CLOSED = 6,      /* both sides have closed, or a reset went by */
};

enum flow_flag {
	FLOW_F_REPLY = 1,    /* this half matches packets of the endpoint */
	FLOW_F_REPLICA = 2,  /* written by replication, no packet seen here yet */
	FLOW_F_OWN_FIN = 4,  /* FIN seen in this half's direction */
	FLOW_F_PEER_FIN = 8, /* FIN seen in the other direction */
	FLOW_F_OWN_RST = 16, /* RST seen in this half's direction */
	FLOW_F_PEER_RST = 32,
	FLOW_F_DOOMED = 64, /* ended by user space: whoever still sends is told so; OWN_RST: has been */
};

#define FLOW_F_OWN (FLOW_F_OWN_FIN | FLOW_F_OWN_RST)
#define FLOW_F_PEER (FLOW_F_PEER_FIN | FLOW_F_PEER_RST)
#define FLOW_F_CLOSING (FLOW_F_OWN | FLOW_F_PEER)

/* One half of a connection: what becomes of a packet that matches the key. It holds no
 * number that means something on this node only, so it can be written into the map of
 * another node as it is. last_seen is the low half of jiffies; created is jiffies >> 6,
 * which does not wrap within the life of a machine. */
struct flow {
	struct addr new_saddr;
	struct addr new_daddr;
	__be16 new_sport;
	__be16 new_dport;
	__u16 service;  /* replicated id */
	__u16 endpoint; /* replicated id */
	__u32 last_seen;
	__u32 created;
	__u8 state;
	__u8 flags;
	__u8 owner_slot;
	__u8 mode;
	__u32 bytes_lo;
	__u32 packets_lo;
	__u16 bytes_hi;
	__u16 packets_hi;
};

#define CREATED_SHIFT 6

/* The half-open table (half.h). */
#define HALF_WAYS 8
#define HALF_FACTOR 0x9fb21c651e98df25ULL

struct half_slot {
	struct flow_key key;
	struct flow f;
};

/* The first cache line of a bucket says which places are taken, and by whom. */
struct half_bucket {
	__u32 lock; /* held while an entry is put in */
	__u32 next; /* place to give away next */
	__u32 used; /* one bit for each place: in use since it was made */
	__u32 tag[HALF_WAYS]; /* a part of the hash; 0: free */
	__u32 pad[5];
	struct half_slot slot[HALF_WAYS];
};

enum nat_mode {
	MODE_FULLNAT = 1,
	MODE_ONEARM = 2,
	MODE_DNAT = 3,
	MODE_DSR = 4,        /* only the MAC address changes */
	MODE_DSR_TUNNEL = 5, /* IP in IP */
};

enum algorithm {
	ALGORITHM_RR = 1,
	ALGORITHM_MAGLEV = 2,
	ALGORITHM_LC = 3, /* the table names each endpoint once */
};

enum service_flag {
	SERVICE_F_FULL_RESET = 1, /* a full flow table is answered, not silent */
};

enum vip_flag {
	VIP_F_RANGES = 1, /* a service on it has more than one port */
};

enum endpoint_flag {
	ENDPOINT_F_NEW = 1, /* takes new flows */
};

struct service_key {
	struct addr vip;
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

struct service {
	__u32 table_base; /* into selection, counted in references */
	__u32 table_len;  /* 0: no endpoint takes new flows */
	__u32 seed;
	__u32 rate;     /* new flows a second; 0: no limit */
	__u32 affinity; /* in units of created; 0: none */
	__u16 id;
	__u16 first_port; /* host order */
	__u8 mode;
	__u8 algorithm;
	__u8 flags;
	__u8 pad;
};

/* Services of more than one port: the longest prefix of {vip, proto, port} names the first
 * port, under which the service stands in services. */
struct range_key {
	__u32 prefix_len;
	__be32 vip[4];
	__u8 proto;
	__u8 pad;
	__be16 port;
};

struct range {
	__be16 first_port;
	__u8 pad[2];
};

/* Selection tables hold replicated endpoint ids, four to an entry because an array rounds
 * each entry up to eight bytes. */
#define REFS_PER_ENTRY 4

struct references {
	__u16 ref[REFS_PER_ENTRY];
};

/* By replicated id. */
struct endpoint {
	struct addr addr;
	__be16 port;
	__u16 service;
	__u16 source_base; /* into sources */
	__u16 source_len;  /* 0: dnat, dsr by L2 */
	__u16 weight;
	__u8 flags;
	__u8 pad[5];
};

/* What a service's new flows need to remember, by service id; shared by all CPUs. */
struct service_work {
	__u64 taken;    /* new flows in a second: its number and their count, 32 bits each */
	__u32 position; /* round robin */
	__u32 pad;
};

struct affinity_key {
	struct addr client;
	__u16 service;
	__u8 pad[6];
};

struct affinity {
	__u16 endpoint;
	__u8 pad[2];
	__u32 used; /* in units of created */
};

struct endpoint_stats {
	__u64 forward_packets;
	__u64 forward_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
	__u64 new_flows;
};

/* The fragments of a datagram, by what RFC 791 and RFC 8200 know it by. */
struct fragment_key {
	struct addr saddr;
	struct addr daddr;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment {
	__be16 sport;
	__be16 dport;
	__u32 seen; /* low half of jiffies */
};

#define QUOTE_MAX 512 /* bytes of a packet that an ICMP error about it repeats */

/* What making ICMP errors needs, on each CPU. */
struct workspace {
	__u32 second; /* in which errors were counted */
	__u32 errors;
	__u8 quote[QUOTE_MAX + 8]; /* zeros after the quoted bytes complete the last word */
};

/* SYNs that came while a service was flooded: 16 bits of the tuple's hash, and of the time. They
 * are written in turn, so the next place holds the oldest. */
#define MARKS_PER_GROUP 15

struct marks {
	__u32 mark[MARKS_PER_GROUP];
	__u32 next;
};

struct next_hop {
	__u32 ifindex;
	__u8 smac[6];
	__u8 dmac[6];
	__u32 learned; /* low half of jiffies */
	__u32 generation;
	__u16 mtu; /* of the way; 0: not known */
	__u8 pad[2];
};

/* What the XDP hook has to know of an interface, in a table by the low bits of its index. */
#define STATIONS 1024

enum station_flag {
	STATION_F_XMIT = 1,       /* it sends frames that XDP redirects to it */
	STATION_F_XMIT_FRAGS = 2, /* also those of several buffers */
	STATION_F_TX = 4,         /* XDP_TX is safe: veth forgets to wake the other end for it */
};

struct station {
	__u32 ifindex; /* 0: nothing is known */
	__u32 mtu;
	__u8 mac[6];
	__u8 flags;
	__u8 pad;
};

/* Written by user space, read by the program. */
struct control_block {
	__u32 generation; /* of the next-hop cache */
	__u32 half_seed;  /* of the half-open table's hash; for the next who opens the maps */
};

struct clock {
	__u64 jiffies;
	__u64 ktime_ns;
};

/* What user space hands to pontoon_doom, in the place of a packet: the connection, told from a later
 * one of the same tuple, and when both halves are to have been seen last. */
struct ending {
	__u8 link[16]; /* a frame begins with a link header; zero */
	struct flow_key key; /* of the forward half */
	__u32 created;
	__u32 last_seen;
	__u16 endpoint;
	__u8 pad[6];
};

/* One question of user space to the flow table, and its answer. */
#define FINDS 512

struct find {
	struct flow_key key;
	__u32 wanted; /* 0: the questions end here */
	__u32 found;
	struct flow value;
};

enum record_op {
	RECORD_UPDATE = 1,
	RECORD_DELETE = 2,
	RECORD_AFFINITY = 3, /* client, service, endpoint_id, and idle_ms since its last new flow */
};

enum record_reason {
	RECORD_NEW = 1,
	RECORD_STATE = 2,
	RECORD_ADOPT = 3,
	RECORD_CLOSE = 4,
	RECORD_EXPIRE = 5,
	RECORD_SNAPSHOT = 6, /* the owner's own word */
	RECORD_HEARSAY = 7,  /* a replica, repeated; its owner lives */
	RECORD_ORPHAN = 8,   /* a replica nobody answers for */
};

/* What happened to a connection: the ring's record and the wire record of replication.
 * Little endian, ports and addresses in network order. */
struct flow_record {
	struct addr client;
	struct addr vip;
	struct addr snat;
	struct addr endpoint;
	__be16 client_port;
	__be16 vip_port;
	__be16 snat_port;
	__be16 endpoint_port;
	__u16 service;
	__u16 endpoint_id;
	__u8 proto;
	__u8 mode;
	__u8 state;
	__u8 op;
	__u8 owner_slot;
	__u8 reason;
	__u8 flags; /* FIN and RST bits as the forward half has them */
	__u8 pad;
	__u32 idle_ms; /* age of the last packet, saturating; in the ring its stamp */
	__u32 age_ms;  /* age of the connection, saturating */
	__u32 pad2;
	__u64 forward_packets;
	__u64 forward_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
};

/* Index into counters. Below COUNTER_REFUSED (32): reasons for which a packet was dropped. */
enum counter {
	DROP_NO_FLOW = 0,        /* TCP segment of an unknown connection */
	DROP_NO_SERVICE = 1,     /* to a VIP, no such service */
	DROP_NO_ENDPOINT = 2,    /* the service has no endpoint for new flows */
	DROP_PROTOCOL = 3,       /* to a VIP, neither TCP, UDP nor ICMP */
	DROP_ICMP = 4,           /* to a VIP, ICMP other than echo request */
	DROP_FRAGMENT = 5,       /* to a VIP, a fragment whose first one is not known */
	DROP_TTL = 6,            /* would live no longer */
	DROP_SNAT_EXHAUSTED = 7, /* no free source port towards the endpoint */
	DROP_DNAT_COLLISION = 8, /* the reply tuple belongs to another connection */
	DROP_TABLE_FULL = 9,     /* the flow table takes no more */
	DROP_HALF_OPEN = 10,     /* the half-open table lost or refused the entry */
	DROP_NO_ROUTE = 11,      /* no route to the new destination */
	DROP_FWD_DISABLED = 12,  /* the host does not forward */
	DROP_FRAG_NEEDED = 13,   /* larger than the way out takes */
	DROP_REWRITE = 14,       /* the kernel refused to change the packet */
	DROP_SNAT_CONFLICT = 15, /* the tuple was given to another connection meanwhile */
	DROP_FLOOD = 16,         /* more new flows a second than the service allows */
	DROP_MALFORMED = 17,     /* to a VIP, lengths that contradict each other */
	DROP_ICMP_UNKNOWN = 18,  /* an ICMP error about no flow of ours */
	DROP_TRANSLATE = 19,     /* what the other IP family cannot say */
	DROP_DOOMED = 20,        /* of a connection whose endpoint is gone */
	DROP_LAND = 21,          /* source and destination are the same */
	DROP_NO_PROGRAM = 22,    /* came while one set of programs replaced another */
	DROP_MARTIAN = 23,       /* to a VIP, from a source that no host has */
	DROP_SCTP_FRAGMENT = 24, /* the first one, whose ports would have to change */
	COUNTER_REFUSED = 32,           /* answered with a reset, an abort or an unreachable */
	COUNTER_CREATED = 33,           /* half-open flows created */
	COUNTER_PROMOTED = 34,          /* flows established */
	COUNTER_ADOPTED = 35,           /* replicas that saw a packet here */
	COUNTER_TAKEN_OVER = 36,        /* closed flows whose tuple was given away */
	COUNTER_REPLACED = 37,          /* closed flows replaced by a new SYN */
	COUNTER_REVIVED = 38,           /* flows that lived on after a reset */
	COUNTER_RING_LOST = 39,         /* records that found no room */
	COUNTER_INSERT_FAILED = 40,
	COUNTER_NEXT_HOP_MISS = 41,     /* FIB lookups */
	COUNTER_NEIGHBOUR_MISS = 42,    /* packets left to the kernel's resolution */
	COUNTER_ECHO = 43,              /* echo requests handed to the host */
	COUNTER_FLOOD_REPEATED = 44,    /* SYNs admitted in a flood because they were repeated */
	COUNTER_ICMP_ERROR = 45,        /* ICMP errors translated and passed on */
	COUNTER_FRAGMENT = 46,          /* later fragments that followed their first */
	COUNTER_TRANSLATED = 47,        /* packets carried into the other IP family */
	COUNTER_ENCAPSULATED = 48,      /* packets sent through a tunnel */
	COUNTER_TOO_BIG = 49,           /* "too big" answers sent */
	COUNTER_AFFINITY = 50,          /* new flows that went where the client was before */
	COUNTER_XDP_FORWARD = 51,       /* packets the XDP hook sent by itself */
	COUNTER_XDP_PASS = 52,          /* packets of ours the XDP hook left to TC */
	COUNTER_EXPIRED = 53,           /* "time exceeded" answers sent */
	COUNTER_ANSWER_LIMITED = 54,    /* ICMP errors not sent: too many this second */
	COUNTER_ECHOED = 55,            /* neighbours' probes sent back */
	COUNTER_HALF_EVICTED = 56,      /* half-open entries that gave way to newer ones */
	COUNTER_MAX = 64,
};

/* What a step of the packet path decided. Negative: go on. */
enum verdict {
	V_CONTINUE = -1,
	V_PASS = 0,    /* not ours: leave the packet as it is */
	V_DROP = 1,
	V_FORWARD = 2, /* by the flow entry of the packet's key */
	V_REFUSE = 3,  /* tell the sender that nobody is there */
	V_MISS = 4,    /* treat as a packet without a flow */
	V_RETRY = 5,   /* try another endpoint */
	V_ICMP = 6,    /* to a VIP or about a flow: the ICMP program decides */
	V_NEW = 7,     /* to a VIP, with ports and without a flow: the program for new ones decides */
	V_ECHO = 8,    /* a neighbour probes whether this node forwards */
};

/* Programs that the entry program of a hook jumps to: what the verifier would otherwise have
 * to follow in one piece, and the stack, end at the jump. */
enum tail {
	TAIL_SLOW = 0,   /* everything but one more packet of an established connection, and new ones */
	TAIL_ICMP = 1,   /* ICMP errors */
	TAIL_XLAT = 2,   /* NAT64, NAT46 */
	TAIL_TUNNEL = 3, /* IP in IP */
	TAIL_ANSWER = 4, /* resets, aborts, unreachables, "too big" */
	TAIL_PARSE = 5,  /* options, extension headers, fragments, ICMP, SCTP */
	TAIL_XLAT_ICMP = 6, /* ICMP errors about flows of NAT64 and NAT46 */
	TAIL_NEW = 7,       /* to a VIP, by an entry neither in flows nor in half_open */
	TAIL_MAX = 8,
};

/* What TAIL_ANSWER is to say; in skb->cb[0], with a number in cb[1]. */
enum answer {
	ANSWER_REFUSE = 1,   /* nobody is there: reset, abort or port unreachable */
	ANSWER_TOO_BIG = 2,  /* number: the MTU */
	ANSWER_EXPIRED = 3,  /* TTL or hop limit */
	ANSWER_ECHO = 4,     /* the packet itself, to where it came from */
};

enum packet_kind {
	KIND_FLOW = 0, /* TCP, UDP or SCTP with ports */
	KIND_ICMP = 1,
	KIND_OTHER = 2,
};

enum packet_flag {
	PACKET_F_V6 = 1,
	PACKET_F_FIRST = 2,        /* first fragment of several */
	PACKET_F_LATER = 4,        /* fragment without an L4 header; its ports are not known yet */
	PACKET_F_OPTIONS = 8,      /* IP options or extension headers */
	PACKET_F_FRAG_HEADER = 16, /* IPv6 fragment header, also of an atomic fragment */
	PACKET_F_BODY = 32,        /* fragment without an L4 header; the ports are those of its first */
	PACKET_F_MALFORMED = 64,   /* lengths or checksums that contradict each other */
};

#define PACKET_F_FRAGMENT (PACKET_F_FIRST | PACKET_F_LATER)

/* TCP flags; what SCTP chunks mean is said in the same terms (see sctp.h). */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* A parsed packet. */
struct packet {
	struct flow_key key;
	__u32 bytes;    /* from the IP header on, as the frame has them */
	__u32 payload;  /* after the IP header(s), as the IP header says */
	__u32 segments; /* on the wire */
	__u32 now;      /* low half of jiffies */
	__u32 created;  /* jiffies >> CREATED_SHIFT */
	__u32 frag_id;  /* network order */
	__u16 l3_off;
	__u16 l4_off;
	__u8 tcp_flags;
	__u8 ttl; /* or hop limit */
	__u8 kind;
	__u8 icmp_type;
	__u8 flags;
	__u8 missed; /* the entry program has not found it in flows */
	__u8 vip;    /* enum vip_flag of the destination, once it is known to be a VIP */
	__u8 pad;
};

/* What the packet tracer tells (trace.h). */
enum trace_kind {
	STEP_COUNT = 1,     /* number: the counter */
	STEP_FLOW = 2,      /* found in flows; extra: endpoint id, number: state, flags, owner, mode */
	STEP_HALF_OPEN = 3, /* found in half_open; the same */
	STEP_CREATED = 4,   /* put into half_open; the same */
	STEP_SEND = 5,      /* by this entry; the same */
	STEP_VIP = 6,       /* number: whether the destination is a VIP */
	STEP_SERVICE = 7,   /* extra: id, number: mode, algorithm, table length */
	STEP_AFFINITY = 8,  /* extra: the endpoint the client was with; 0: none */
	STEP_SELECTED = 9,  /* extra: endpoint id, number: index in the table */
	STEP_RETRY = 10,    /* extra: endpoint id that could not take the flow */
	STEP_PORT = 11,     /* extra: source port, number: tuples tried before */
	STEP_FIB = 12,      /* extra: the kernel's answer, number: interface */
	STEP_ANSWER = 13,   /* extra: enum answer, number: its number */
};

enum trace_match {
	TRACE_M_CLIENT = 1,
	TRACE_M_SERVICE = 2,
	TRACE_M_ALL = 3,
	TRACE_M_OPEN = 4, /* not decided yet */
};

#define TRACE_STEPS 32
#define TRACE_BYTES 192

struct trace_step {
	__u16 kind;
	__u16 extra;
	__u32 number;
};

/* All about one packet. */
struct trace {
	__u64 time_ns; /* since boot, not counting sleep */
	__u64 sequence; /* of this CPU's matching packets */
	__u64 lost;     /* of those, by now */
	__u32 live;     /* a packet is being traced */
	__u32 matched;
	__u32 cpu;
	__u32 ifindex;
	__u32 out_ifindex; /* by the cached next hop */
	__u32 length;
	__u32 vlan_tci; /* bit 16: there is a tag beside the packet */
	__s32 action;
	__u32 count; /* of steps; more than TRACE_STEPS are not kept */
	__u32 before_len;
	__u32 after_len;
	__u32 sent; /* length of the frame that left */
	struct flow flow; /* the last one noted */
	struct packet packet;
	struct trace_step steps[TRACE_STEPS];
	__u8 before[TRACE_BYTES];
	__u8 after[TRACE_BYTES];
};

_Static_assert(sizeof(struct trace_step) == 8, "trace_step");
_Static_assert(sizeof(struct addr) == 16, "addr");
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");
_Static_assert(sizeof(struct flow) == 64, "flow");
_Static_assert(offsetof(struct half_bucket, slot) == 64, "half_bucket.slot");
_Static_assert(sizeof(struct half_bucket) == 896, "half_bucket");
_Static_assert(offsetof(struct flow, service) == 36, "flow.service");
_Static_assert(offsetof(struct flow, last_seen) == 40, "flow.last_seen");
_Static_assert(offsetof(struct flow, state) == 48, "flow.state");
_Static_assert(offsetof(struct flow, bytes_lo) == 52, "flow.bytes_lo");
_Static_assert(sizeof(struct service_key) == 24, "service_key");
_Static_assert(sizeof(struct service) == 28, "service");
_Static_assert(sizeof(struct range_key) == 24, "range_key");
_Static_assert(sizeof(struct references) == 8, "references");
_Static_assert(sizeof(struct endpoint) == 32, "endpoint");
_Static_assert(offsetof(struct endpoint, source_base) % 4 == 0, "the run of sources is read at once");
_Static_assert(sizeof(struct service_work) == 16, "service_work");
_Static_assert(sizeof(struct affinity_key) == 24, "affinity_key");
_Static_assert(sizeof(struct affinity) == 8, "affinity");
_Static_assert(sizeof(struct endpoint_stats) == 40, "endpoint_stats");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");
_Static_assert(sizeof(struct fragment) == 8, "fragment");
_Static_assert(sizeof(struct marks) == 64, "marks");
_Static_assert(COUNTER_REFUSED == 32, "drop reasons end where the other counters begin");
_Static_assert(sizeof(struct next_hop) == 28, "next_hop");
_Static_assert(sizeof(struct station) == 16, "station");
_Static_assert(sizeof(struct ending) == 72, "ending");
_Static_assert(sizeof(struct flow_record) == 128, "flow_record");
_Static_assert(offsetof(struct flow_record, service) == 72, "flow_record.service");
_Static_assert(offsetof(struct flow_record, owner_slot) == 80, "flow_record.owner_slot");
_Static_assert(offsetof(struct flow_record, idle_ms) == 84, "flow_record.idle_ms");
_Static_assert(offsetof(struct flow_record, forward_packets) == 96, "flow_record.forward_packets");
