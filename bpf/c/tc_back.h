// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Bringing packets to the node that was master before; see back.h. */
#pragma once

#include "back.h"
#include "tc_forward.h"

/* for_host tells whether the packet is for this machine itself: its own connections stay its own. */
static __always_inline int for_host(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup fib = {};
	long rc;

	fib_question(&fib, &p->key.saddr, &p->key.daddr, p->key.proto, skb->ifindex);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH;
}

/* is_from tells whether the frame was sent by this hardware address. */
static __always_inline int is_from(struct __sk_buff *skb, const __u8 mac[ETH_ALEN])
{
	__u16 from[ETH_ALEN / 2], of[ETH_ALEN / 2];

	__builtin_memcpy(of, mac, sizeof(of));
	return !bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_source), from, sizeof(from)) &&
	       from[0] == of[0] && from[1] == of[1] && from[2] == of[2];
}

/* tc_back brings the packet back, but not to who sent it, who does not know it either: two nodes may take
 * each other for the predecessor. It goes one hop older, so that more of them do not throw it round without
 * end. -1: it is to go its usual way. */
static __always_inline int tc_back(struct __sk_buff *skb, const struct packet *p, int verdict)
{
	struct predecessor *before = predecessor_on(skb->ifindex);
	struct next_hop hop = {};

	if (!before || p->ttl <= 1 || is_from(skb, before->dmac) || (verdict == V_PASS && for_host(skb, p)))
		return -1;
	__builtin_memcpy(hop.dmac, before->dmac, ETH_ALEN);
	__builtin_memcpy(hop.smac, before->smac, ETH_ALEN);
	if (tc_pass_on(skb, p, &hop))
		return tc_drop(DROP_REWRITE);
	count(COUNTER_BROUGHT_BACK);
	return bpf_redirect(skb->ifindex, 0);
}
