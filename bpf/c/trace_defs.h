// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the packet tracer keeps of a packet. */
#pragma once

#include "packet.h"

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

_Static_assert(sizeof(struct trace_step) == 8, "trace_step");

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
