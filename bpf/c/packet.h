// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A parsed packet, and what may become of it. */
#pragma once

#include "defs.h"

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
	TAIL_GATE = 8,      /* who has this address: ARP requests, neighbour solicitations */
	TAIL_BACK = 9,      /* of a connection that is not known here, after a planned move */
	TAIL_BRING = 10,    /* the same, where every node of an instance gets packets */
	TAIL_MAX = 11,
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
