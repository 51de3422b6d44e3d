// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* After a planned move the node that was master lives and goes on forwarding. What it is about to open,
 * or has just opened, is not known here yet; so for a moment packets of connections that nobody knows
 * are brought to it, as they are. It answers for them as it would have. */
#pragma once

#include "onlink.h"

/* goes_on tells whether the packet belongs to a TCP connection that has begun elsewhere, as far as it
 * says itself: to a VIP, or past this node to whom an endpoint answers in MODE_DNAT. */
static __always_inline int goes_on(const struct packet *p, int verdict)
{
	if (p->key.proto != IPPROTO_TCP || p->kind != KIND_FLOW || p->flags & (PACKET_F_LATER | PACKET_F_BODY))
		return 0;
	return p->tcp_flags & TCP_ACK && (verdict == V_NEW || verdict == V_PASS);
}

/* predecessor_on returns who was master before, while packets are to be brought there. */
static __always_inline struct predecessor *predecessor_on(__u32 ifindex)
{
	struct predecessor *before = on_link(predecessors, PREDECESSORS, ifindex);
	__u64 until;

	if (!before)
		return NULL;
	until = *(volatile __u64 *)&before->until;
	return until && bpf_ktime_get_boot_ns() < until ? before : NULL;
}
