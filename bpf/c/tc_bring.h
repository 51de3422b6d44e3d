// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Bringing packets to the nodes that may know their connection; see sharing.h. */
#pragma once

#include "sharing.h"
#include "tc_back.h"

/* from_peer tells whether another node on the link sent the frame. */
static __always_inline int from_peer(struct __sk_buff *skb, const struct peer_link *n)
{
	__u16 from[ETH_ALEN / 2];
	__u32 i, same = 0;

	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_source), from, sizeof(from)))
		return 0;
#pragma unroll
	for (i = 0; i < PEER_SLOTS; i++) {
		const __u16 *mac = (const __u16 *)n->mac[i];

		if (n->there >> i & 1)
			same |= !((from[0] ^ mac[0]) | (from[1] ^ mac[1]) | (from[2] ^ mac[2]));
	}
	return same;
}

/* A packet that may be another node's. */
struct stray {
	__u32 to;    /* the nodes that it is to be brought to, one bit each; 0: it is to go its usual way */
	__u32 whose; /* budget pays */
	__u32 alone; /* these are all that may know it: who does not is to treat it as anything else */
};

/* past_us returns the nodes that may know the connection of an answer that passes this node. */
static __always_inline __u32 past_us(struct __sk_buff *skb, const struct packet *p, __u32 origin)
{
	if (origin & ORIGIN_F_TO_US || for_host(skb, p))
		return 0;
	return origin & ORIGIN_F_ALL ? ~0U : origin >> SLOTS_SHIFT;
}

/* seek fills in what is to become of a packet. What an endpoint answers to a source port goes to the node that
 * gave the port out, if that is there. A client's datagram is not brought: it may be the first. */
static __always_inline void seek(struct __sk_buff *skb, const struct packet *p, int verdict,
				 const struct peer_link *n, struct stray *s)
{
	__u32 origin = 0, slot;

	s->whose = BRING_CLIENT;
	s->alone = !(p->vip & VIP_F_SHARED);
	if (verdict != V_PASS && find_service(p)) {
		if (p->key.proto != IPPROTO_UDP || verdict == V_ICMP)
			s->to = clients_at(p) & n->there;
		return;
	}
	if (verdict != V_ICMP) {
		origin = origin_of(p);
		if (!origin)
			return;
		s->whose = BRING_ENDPOINT;
	}
	if (verdict == V_PASS) {
		/* A datagram goes its way as well, so nobody else is to send it again. */
		s->alone = !(origin & ORIGIN_F_ALL) && p->key.proto != IPPROTO_UDP;
		s->to = past_us(skb, p, origin) & n->there;
		return;
	}
	slot = giver(p->key.dport);
	if (slot < PEER_SLOTS && n->there >> slot & 1)
		s->to = 1U << slot;
	else if (!s->alone)
		s->to = n->there;
}

/* What bringing changes of a packet. */
struct untouched {
	__u8 macs[2 * ETH_ALEN];
	__be16 check;
};

/* tc_hop_back makes the packet what it was before tc_pass_on. */
static __always_inline int tc_hop_back(struct __sk_buff *skb, const struct packet *p,
				       const struct untouched *was)
{
	void *data, *end;
	__u32 l3 = p->l3_off & 0x1f;

	if (bpf_skb_store_bytes(skb, 0, was->macs, sizeof(was->macs), 0))
		return -1;
	if (p->flags & PACKET_F_V6)
		tc_sum_changes(skb, bpf_htons(0x0001));
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (p->flags & PACKET_F_V6) {
		struct ipv6hdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->hop_limit = p->ttl;
	} else {
		struct iphdr *ip = data + l3;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->check = was->check;
		ip->ttl = p->ttl;
	}
	return 0;
}

/* tc_clones sends the packet, which is one hop older by now, to each of the nodes. */
static __always_inline void tc_clones(struct __sk_buff *skb, const struct peer_link *n, __u32 to)
{
	__u32 i;

#pragma unroll
	for (i = 0; i < PEER_SLOTS; i++) {
		if (!(to >> i & 1) || bpf_skb_store_bytes(skb, 0, n->mac[i], ETH_ALEN, 0))
			continue;
		bpf_clone_redirect(skb, skb->ifindex, 0);
		count(COUNTER_BROUGHT);
	}
}

/* tc_last sends the packet itself to one node. */
static __always_inline int tc_last(struct __sk_buff *skb, const struct peer_link *n, __u32 to)
{
	__u32 i;

#pragma unroll
	for (i = 0; i < PEER_SLOTS; i++) {
		if (!(to >> i & 1))
			continue;
		if (bpf_skb_store_bytes(skb, 0, n->mac[i], ETH_ALEN, 0))
			break;
		count(COUNTER_BROUGHT);
		return bpf_redirect(skb->ifindex, 0);
	}
	return tc_drop(DROP_REWRITE);
}

static __always_inline __u32 ones(__u32 bits)
{
	__u32 i, n = 0;

#pragma unroll
	for (i = 0; i < PEER_SLOTS; i++)
		n += bits >> i & 1;
	return n;
}

/* tc_bring brings the packet to other nodes, one hop older. A datagram from an endpoint's port may also be
 * the first of its own, so it goes its way as well: who does not know it gives nothing on it. -1: it
 * is to go its usual way. */
static __always_inline int tc_bring(struct __sk_buff *skb, const struct packet *p, int verdict)
{
	struct peer_link *n = peers_on(skb->ifindex);
	struct untouched was = {};
	struct next_hop hop = {};
	struct stray s = {};
	__u32 to, one;

	if (!n || p->ttl <= 1)
		return -1;
	seek(skb, p, verdict, n, &s);
	to = s.to;
	if (!to)
		return -1;
	if (from_peer(skb, n))
		return s.alone ? -1 : tc_drop(DROP_BROUGHT);
	if (!may_bring(p, s.whose, ones(to)))
		return tc_drop(DROP_BRING_LIMIT);
	if (bpf_skb_load_bytes(skb, 0, was.macs, sizeof(was.macs)) ||
	    bpf_skb_load_bytes(skb, p->l3_off + offsetof(struct iphdr, check), &was.check, sizeof(was.check)))
		return tc_drop(DROP_REWRITE);
	__builtin_memcpy(hop.smac, n->own, ETH_ALEN);
	if (tc_pass_on(skb, p, &hop))
		return tc_drop(DROP_REWRITE);
	if (verdict == V_PASS && p->key.proto == IPPROTO_UDP) {
		tc_clones(skb, n, to);
		return tc_hop_back(skb, p, &was) ? tc_drop(DROP_REWRITE) : -1;
	}
	one = to & -to;
	tc_clones(skb, n, to & ~one);
	return tc_last(skb, n, one);
}
