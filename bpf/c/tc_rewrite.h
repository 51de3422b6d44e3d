// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Rewriting within one IP family for the TC hook, whose checksum helpers understand partial
 * checksums and segmentation offload. */
#pragma once

#include "service.h"

/* One less in the hop limit is one less in the low byte of its 16 bit word; in IPv4's TTL it is one
 * less in the high byte. */
#define LESS_HOP_V6 ((__u16)~bpf_htons(0x0001))
#define LESS_HOP_V4 ((__u16)~bpf_htons(0x0100))

/* has_no_check: a UDP datagram without checksum, which has nothing to correct. */
static __always_inline int has_no_check(struct __sk_buff *skb, const struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct udphdr *udp = data + (p->l4_off & 0x1ff);

	return p->key.proto == IPPROTO_UDP && (void *)(udp + 1) <= end && !udp->check;
}

/* tc_sum_changes tells the kernel by how much the packet's words have grown, where the device has
 * summed it up (CHECKSUM_COMPLETE). A change that a checksum in the packet makes up for is none:
 * so of IPv4's header nothing shows. */
static __always_inline void tc_sum_changes(struct __sk_buff *skb, __u64 diff)
{
	bpf_csum_update(skb, fold32(diff));
}

/* tc_fix_l4 changes the L4 checksum: the addresses with the pseudo header's rules, the ports
 * without, because a partial checksum covers only the former. */
static __always_inline int tc_fix_l4(struct __sk_buff *skb, const struct packet *p, __u32 diff,
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

static __always_inline int rewrite_v4(struct iphdr *ip, void *end, const struct packet *p,
				      const struct flow *f, __u32 diff)
{
	if ((void *)(ip + 1) > end)
		return -1;
	ip->check = ~fold((__u64)(__u16)~ip->check + diff + LESS_HOP_V4);
	ip->ttl = p->ttl - 1;
	ip->saddr = f->new_saddr.w[3];
	ip->daddr = f->new_daddr.w[3];
	return 0;
}

static __always_inline int rewrite_v6(struct ipv6hdr *ip, void *end, const struct packet *p,
				      const struct flow *f)
{
	if ((void *)(ip + 1) > end)
		return -1;
	ip->hop_limit = p->ttl - 1;
	__builtin_memcpy(&ip->saddr, &f->new_saddr, sizeof(f->new_saddr));
	__builtin_memcpy(&ip->daddr, &f->new_daddr, sizeof(f->new_daddr));
	return 0;
}

/* tc_rewrite changes addresses, ports, TTL and checksums, and the MAC addresses when hop is
 * known. The checksum helpers come first: they invalidate packet pointers. */
static __always_inline int tc_rewrite(struct __sk_buff *skb, const struct packet *p,
				      const struct flow *f, const struct next_hop *hop)
{
	int v6 = p->flags & PACKET_F_V6, ports_too = !(p->flags & PACKET_F_BODY);
	__u32 ports = port_pair(f->new_sport, f->new_dport);
	__u32 diff = addr_diff(&p->key, f, v6), off = p->l4_off & 0x1ff, l3 = p->l3_off & 0x1f;
	__u32 old_ports = port_pair(p->key.sport, p->key.dport);
	__u64 grown = v6 ? (__u64)diff + LESS_HOP_V6 : 0;
	struct ethhdr *eth;
	void *data, *end;

	/* That of SCTP has been corrected by tc_fix_sctp. */
	if (ports_too && has_no_check(skb, p))
		grown += (__u64)ports + (__u32)~old_ports;
	else if (ports_too && p->key.proto != IPPROTO_SCTP && tc_fix_l4(skb, p, diff, old_ports, ports))
		return -1;
	if (grown)
		tc_sum_changes(skb, grown);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	eth = data;
	if ((void *)(eth + 1) > end)
		return -1;
	if (v6 ? rewrite_v6(data + l3, end, p, f) : rewrite_v4(data + l3, end, p, f, diff))
		return -1;
	if (hop) {
		__builtin_memcpy(eth->h_dest, hop->dmac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, hop->smac, ETH_ALEN);
	}
	if (!ports_too)
		return 0;
	if (data + off + 4 > end)
		return -1;
	*(__u32 *)(data + off) = ports;
	return 0;
}

/* pass_on takes one hop off the packet's life, and changes nothing else of its IP header. */
static __always_inline int pass_on(void *header, void *end, const struct packet *p)
{
	if (p->flags & PACKET_F_V6) {
		struct ipv6hdr *ip = header;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->hop_limit = p->ttl - 1;
	} else {
		struct iphdr *ip = header;

		if ((void *)(ip + 1) > end)
			return -1;
		ip->check = csum_add(ip->check, LESS_HOP_V4);
		ip->ttl = p->ttl - 1;
	}
	return 0;
}

/* tc_pass_on is all the rewriting of DSR by L2: one hop less, and the way to the endpoint. */
static __always_inline int tc_pass_on(struct __sk_buff *skb, const struct packet *p,
				      const struct next_hop *hop)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if (p->flags & PACKET_F_V6)
		tc_sum_changes(skb, LESS_HOP_V6);
	if ((void *)(eth + 1) > end)
		return -1;
	if (hop) {
		__builtin_memcpy(eth->h_dest, hop->dmac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, hop->smac, ETH_ALEN);
	}
	return pass_on(data + (p->l3_off & 0x1f), end, p);
}
