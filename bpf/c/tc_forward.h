// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Sending from the TC hook: by the cached next hop, else by the kernel's tables. */
#pragma once

#include "tc_rewrite.h"

#define TC_TOO_BIG (-2)

/* tc_neighbour hands the packet to the kernel's neighbour resolution. */
static __always_inline int tc_neighbour(const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh neigh = {};

	neigh.nh_family = fib->family;
	__builtin_memcpy(neigh.ipv6_nh, fib->ipv6_dst, sizeof(neigh.ipv6_nh));
	return bpf_redirect_neigh(fib->ifindex, &neigh, sizeof(neigh), 0);
}

/* fib_question asks how a packet from saddr to daddr leaves. */
static __always_inline void fib_question(struct bpf_fib_lookup *fib, const struct addr *saddr,
					 const struct addr *daddr, __u32 proto, __u32 ifindex)
{
	if (is_v4(daddr)) {
		fib->family = AF_INET;
		fib->ipv4_src = saddr->w[3];
		fib->ipv4_dst = daddr->w[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, saddr, sizeof(*saddr));
		__builtin_memcpy(fib->ipv6_dst, daddr, sizeof(*daddr));
	}
	fib->l4_protocol = proto;
	fib->ifindex = ifindex;
	fib->tot_len = 1; /* so that the route's MTU is told, whatever the packet's length */
}

static __always_inline int tc_drop(__u32 reason)
{
	count(reason);
	return TC_ACT_SHOT;
}

/* tc_mtu is the MTU of an interface, of the packet's own when ifindex is 0; 0: not known. */
static __always_inline __u32 tc_mtu(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	bpf_check_mtu(skb, ifindex, &mtu, 0, 0); /* also fills in the MTU when the packet does not fit */
	return mtu;
}

/* tc_segment is the length from the L4 header on of the longest packet that skb becomes on the
 * wire. */
static __always_inline __u32 tc_segment(struct __sk_buff *skb, const struct packet *p)
{
	__u8 offset = 0;

	if (!skb->gso_size)
		return p->payload;
	if (p->key.proto != IPPROTO_TCP)
		return skb->gso_size + sizeof(struct udphdr);
	bpf_skb_load_bytes(skb, p->l4_off + 12, &offset, 1);
	return skb->gso_size + (offset >> 4) * 4;
}

/* learn keeps the answer of the FIB. */
static __always_inline void learn(const struct packet *p, const struct addr *daddr,
				  const struct bpf_fib_lookup *fib, __u32 generation)
{
	struct next_hop hop = {};

	hop.ifindex = fib->ifindex;
	__builtin_memcpy(hop.smac, fib->smac, ETH_ALEN);
	__builtin_memcpy(hop.dmac, fib->dmac, ETH_ALEN);
	hop.learned = p->now;
	hop.generation = generation;
	hop.mtu = fib->mtu_result;
	bpf_map_update_elem(&next_hops, daddr, &hop, BPF_ANY);
}

/* tc_resolve sends an already rewritten packet by the FIB. When the neighbour is known the
 * answer is kept, but this packet still goes the kernel's way, so that the kernel goes on
 * confirming its neighbour entry while the cached packets bypass it. */
static __noinline int tc_resolve(struct __sk_buff *skb, const struct packet *p,
				 const struct addr *saddr, const struct addr *daddr,
				 __u32 generation)
{
	struct bpf_fib_lookup fib = {};
	long rc;

	count(COUNTER_NEXT_HOP_MISS);
	fib_question(&fib, saddr, daddr, p->key.proto, skb->ifindex);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	step(STEP_FIB, rc, fib.ifindex);
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		learn(p, daddr, &fib, generation);
		if (!skb->gso_size && skb->len - p->l3_off > fib.mtu_result)
			return tc_drop(DROP_FRAG_NEEDED);
		return tc_neighbour(&fib);
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		count(COUNTER_NEIGHBOUR_MISS);
		return tc_neighbour(&fib);
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return tc_drop(DROP_FWD_DISABLED);
	}
	return tc_drop(DROP_NO_ROUTE);
}

/* next_hop_of returns the cached next hop to daddr while it is fresh, and its generation. */
static __always_inline struct next_hop *next_hop_of(const struct packet *p,
						    const struct addr *daddr, __u32 *generation)
{
	struct next_hop *hop = bpf_map_lookup_elem(&next_hops, daddr);
	struct control_block *ctl;
	__u32 zero = 0;

	ctl = bpf_map_lookup_elem(&control, &zero);
	*generation = ctl ? ctl->generation : 0;
	if (hop && hop->generation == *generation && p->now - hop->learned < cfg_next_hop_ttl)
		return hop;
	return NULL;
}

/* way_mtu is the MTU of the way to daddr; 0: not known. */
static __noinline __u32 way_mtu(struct __sk_buff *skb, const struct packet *p,
				const struct addr *saddr, const struct addr *daddr)
{
	struct bpf_fib_lookup fib = {};
	__u32 generation;
	struct next_hop *hop = next_hop_of(p, daddr, &generation);
	long rc;

	if (hop)
		return hop->mtu;
	fib_question(&fib, saddr, daddr, p->key.proto, skb->ifindex);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (rc == BPF_FIB_LKUP_RET_SUCCESS)
		return fib.mtu_result;
	return rc == BPF_FIB_LKUP_RET_NO_NEIGH ? tc_mtu(skb, fib.ifindex) : 0;
}

/* tc_too_big tells whether the packet, or a segment of it, is larger than the way takes. */
static __always_inline int tc_too_big(struct __sk_buff *skb, const struct packet *p,
				      const struct next_hop *hop)
{
	__u32 length = p->bytes, header = p->l4_off - p->l3_off;

	if (skb->gso_size) /* without the options of TCP, of which nothing is known here */
		length = skb->gso_size + header + (p->key.proto == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr));
	return hop->mtu && length > hop->mtu;
}

/* tc_forward rewrites by f and sends, both ends being of one family. TC_TOO_BIG: the packet does
 * not fit and is as it was. */
static __always_inline int tc_forward(struct __sk_buff *skb, const struct packet *p,
				      struct flow *f)
{
	__u32 generation, ifindex = 0;
	struct next_hop *hop = next_hop_of(p, &f->new_daddr, &generation);

	if (hop && tc_too_big(skb, p, hop))
		return TC_TOO_BIG;
	if (hop)
		ifindex = hop->ifindex;
	if (f->mode == MODE_DSR) {
		if (tc_pass_on(skb, p, hop))
			return tc_drop(DROP_REWRITE);
	} else if (tc_rewrite(skb, p, f, hop)) {
		return tc_drop(DROP_REWRITE);
	}
	touch(f, p);
	if (hop)
		return bpf_redirect(ifindex, 0);
	return tc_resolve(skb, p, &f->new_saddr, &f->new_daddr, generation);
}
