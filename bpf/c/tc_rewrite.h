// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Rewriting and sending for the TC hook, whose helpers understand partial checksums and
 * segmentation offload. */
#pragma once

#include "service.h"

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* One's complement difference between two pairs of addresses, for RFC 1624 updates. */
static __always_inline __u32 addr_diff(const struct packet *p, __be32 saddr, __be32 daddr)
{
	__u64 sum = (__u64)(__u32)~p->saddr4 + (__u32)~p->daddr4 + saddr + daddr;

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

static __always_inline int fix_l4(struct __sk_buff *skb, const struct packet *p, __u32 diff,
				  __u32 old_ports, __u32 new_ports)
{
	__u32 off = p->l4_off + offsetof(struct tcphdr, check);
	__u64 flags = 0;

	if (p->key.proto == IPPROTO_UDP) {
		off = p->l4_off + offsetof(struct udphdr, check);
		flags = BPF_F_MARK_MANGLED_0;
	}
	if (bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_PSEUDO_HDR))
		return -1;
	return bpf_l4_csum_replace(skb, off, old_ports, new_ports, flags | 4);
}

static __always_inline __u32 port_pair(__be16 sport, __be16 dport)
{
	return (__u32)dport << 16 | sport;
}

/* tc_rewrite changes addresses, ports, TTL and checksums, and the MAC addresses when hop is
 * known. The checksum helpers come first: they invalidate packet pointers. */
static __always_inline int tc_rewrite(struct __sk_buff *skb, const struct packet *p,
				      const struct flow *f, const struct next_hop *hop)
{
	__be32 saddr = f->new_saddr.w[3], daddr = f->new_daddr.w[3];
	__u32 ports = port_pair(f->new_sport, f->new_dport);
	__u32 diff = addr_diff(p, saddr, daddr), off = p->l4_off & 0x7f;
	struct ethhdr *eth;
	struct iphdr *ip;
	void *data, *end;

	if (fix_l4(skb, p, diff, port_pair(p->key.sport, p->key.dport), ports))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	eth = data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > end || data + off + 4 > end)
		return -1;
	if (hop) {
		__builtin_memcpy(eth->h_dest, hop->dmac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, hop->smac, ETH_ALEN);
	}
	/* One less in the TTL is one less in the high byte of its 16 bit word. */
	ip->check = ~fold((__u64)(__u16)~ip->check + diff + (__u16)~bpf_htons(0x0100));
	ip->ttl = p->ttl - 1;
	ip->saddr = saddr;
	ip->daddr = daddr;
	*(__u32 *)(data + off) = ports;
	return 0;
}

/* tc_neighbour hands the packet to the kernel's neighbour resolution. */
static __always_inline int tc_neighbour(const struct bpf_fib_lookup *fib)
{
	struct bpf_redir_neigh neigh = {};

	neigh.nh_family = fib->family;
	__builtin_memcpy(neigh.ipv6_nh, fib->ipv6_dst, sizeof(neigh.ipv6_nh));
	return bpf_redirect_neigh(fib->ifindex, &neigh, sizeof(neigh), 0);
}

/* tc_resolve sends an already rewritten packet by the FIB. When the neighbour is known the
 * answer is kept, but this packet still goes the kernel's way, so that the kernel goes on
 * confirming its neighbour entry while the cached packets bypass it. */
static __noinline int tc_resolve(struct __sk_buff *skb, const struct packet *p,
				 const struct flow *f, __u32 generation)
{
	struct bpf_fib_lookup fib = {};
	struct next_hop hop = {};
	long rc;

	count(COUNTER_NEXT_HOP_MISS);
	fib.family = AF_INET;
	fib.l4_protocol = p->key.proto;
	fib.ipv4_src = f->new_saddr.w[3];
	fib.ipv4_dst = f->new_daddr.w[3];
	fib.ifindex = skb->ifindex;
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		hop.ifindex = fib.ifindex;
		__builtin_memcpy(hop.smac, fib.smac, ETH_ALEN);
		__builtin_memcpy(hop.dmac, fib.dmac, ETH_ALEN);
		hop.learned = p->now;
		hop.generation = generation;
		bpf_map_update_elem(&next_hops, &f->new_daddr, &hop, BPF_ANY);
		return tc_neighbour(&fib);
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		count(COUNTER_NEIGHBOUR_MISS);
		return tc_neighbour(&fib);
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		count(DROP_FWD_DISABLED);
		return TC_ACT_SHOT;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		count(DROP_FRAG_NEEDED);
		return TC_ACT_SHOT;
	}
	count(DROP_NO_ROUTE);
	return TC_ACT_SHOT;
}

static __always_inline int tc_forward(struct __sk_buff *skb, const struct packet *p,
				      struct flow *f)
{
	struct next_hop *hop = bpf_map_lookup_elem(&next_hops, &f->new_daddr);
	struct control_block *ctl;
	__u32 zero = 0, generation, ifindex = 0;

	ctl = bpf_map_lookup_elem(&control, &zero);
	generation = ctl ? ctl->generation : 0;
	if (hop && hop->generation == generation && p->now - hop->learned < cfg_next_hop_ttl)
		ifindex = hop->ifindex;
	else
		hop = NULL;
	if (tc_rewrite(skb, p, f, hop)) {
		count(DROP_REWRITE);
		return TC_ACT_SHOT;
	}
	touch(f, p);
	if (hop)
		return bpf_redirect(ifindex, 0);
	return tc_resolve(skb, p, f, generation);
}
