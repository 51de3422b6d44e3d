// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What is counted. */
#pragma once

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
	DROP_NOT_HELD = 25,      /* who has a VIP that another node holds */
	DROP_NO_LEASE = 26,      /* who has a VIP that this node holds, but its lease has run out */
	DROP_BROUGHT = 27,       /* another node brought it, and it is not known here either */
	DROP_BRING_LIMIT = 28,   /* of an unknown connection, and enough were brought to other nodes this second */
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
	COUNTER_HALF_UNTOLD = 57,       /* half-open connections kept from the ring: it was filling up */
	COUNTER_BROUGHT_BACK = 58,      /* packets of unknown connections brought to the master before */
	COUNTER_BROUGHT = 59,           /* frames brought to other nodes, which may know their connection */
	COUNTER_GUEST = 60,             /* replicas forwarded here beside their owner, which lives */
	COUNTER_MAX = 64,
};

_Static_assert(COUNTER_REFUSED == 32, "drop reasons end where the other counters begin");
