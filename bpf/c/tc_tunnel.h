// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* DSR through a tunnel: IP in IP (RFC 2003) and IPv6 in IPv6 (RFC 2473). The endpoint takes the
 * outer header off and answers the client itself. */
#pragma once

#include "tc_xlat.h"

#define TUNNEL_TTL 64
#define NEXT_IPV6 41 /* IPv6 as payload */

/* tunnel_source is our end of the tunnel: an address of this node, so it is not in the flow. */
static __always_inline struct addr *tunnel_source(const struct flow *f)
{
	struct endpoint *ep = get_endpoint(f->endpoint);
	__u32 at;

	if (!ep || ep->service != f->service || !ep->source_len)
		return NULL;
	at = ep->source_base;
	return bpf_map_lookup_elem(&sources, &at);
}

/* grow makes room for an outer header. The segments of an offloaded packet have been seen to
 * fit, so they stay as they are. */
static __always_inline int grow(struct __sk_buff *skb, __u32 size, __u64 family)
{
	__u64 flags = family | BPF_F_ADJ_ROOM_FIXED_GSO;

	return bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, flags);
}

/* tunnel_v4 takes one hop off the packet and puts it into another. DF and TOS are those of the
 * inner header (RFC 2003, 3.1; RFC 6040, 4.1, normal mode). */
static __noinline int tunnel_v4(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
				const struct addr *source, const struct next_hop *hop)
{
	struct frame_v4 to = {};
	struct iphdr ip;
	__u32 length;

	if (bpf_skb_load_bytes(skb, 0, &to.eth, sizeof(to.eth)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	ip.check = csum_add(ip.check, LESS_HOP_V4);
	ip.ttl = p->ttl - 1;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) ||
	    grow(skb, sizeof(to.ip), BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return -1;
	set_hop(&to.eth, hop);
	length = sizeof(to.ip) + (p->l4_off - p->l3_off) + p->payload;
	to.ip.version = 4;
	to.ip.ihl = 5;
	to.ip.tos = ip.tos;
	to.ip.tot_len = length > 0xffff ? 0 : bpf_htons(length);
	to.ip.frag_off = ip.frag_off & bpf_htons(IP_DF);
	to.ip.id = bpf_get_prandom_u32();
	to.ip.ttl = TUNNEL_TTL;
	to.ip.protocol = IPPROTO_IPIP;
	to.ip.saddr = source->w[3];
	to.ip.daddr = f->new_daddr.w[3];
	to.ip.check = ~fold(sum_words(&to.ip, sizeof(to.ip) / 2));
	return store_frame(skb, &to.eth, sizeof(to.ip));
}

/* tunnel_v6 does the same. The flow label tells connections apart on ways that share the load
 * by it (RFC 6438). */
static __noinline int tunnel_v6(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
				const struct addr *source, const struct next_hop *hop)
{
	__u32 label = tuple_hash(&p->key, 0), length;
	struct frame_v6 to = {};
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, 0, &to.eth, sizeof(to.eth)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	ip.hop_limit = p->ttl - 1;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM) ||
	    grow(skb, sizeof(to.ip), BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
		return -1;
	set_hop(&to.eth, hop);
	length = (p->l4_off - p->l3_off) + p->payload;
	to.ip.version = 6;
	to.ip.priority = ip.priority;
	to.ip.flow_lbl[0] = (ip.flow_lbl[0] & 0xf0) | (label >> 16 & 0x0f);
	to.ip.flow_lbl[1] = label >> 8;
	to.ip.flow_lbl[2] = label;
	to.ip.payload_len = length > 0xffff ? 0 : bpf_htons(length);
	to.ip.nexthdr = NEXT_IPV6;
	to.ip.hop_limit = TUNNEL_TTL;
	__builtin_memcpy(&to.ip.saddr, source, sizeof(*source));
	__builtin_memcpy(&to.ip.daddr, &f->new_daddr, sizeof(f->new_daddr));
	return store_frame(skb, &to.eth, sizeof(to.ip));
}

/* tunnel_excess returns 0 when the packet in its tunnel fits an MTU, else the largest packet
 * that its sender may send. */
static __always_inline __u32 tunnel_excess(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 outer = p->flags & PACKET_F_V6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr), room = mtu - outer;

	if (!mtu || outer + (p->l4_off - p->l3_off) + tc_segment(skb, p) <= mtu)
		return 0;
	return p->flags & PACKET_F_V6 && room < IPV6_MIN_MTU ? IPV6_MIN_MTU : room;
}

/* tunnel encapsulates and sends. */
static __noinline int tunnel(struct __sk_buff *skb, const struct packet *p, struct flow *f,
			     const struct addr *source)
{
	__u32 generation, ifindex = 0;
	struct next_hop *hop = next_hop_of(p, &f->new_daddr, &generation);
	int v6 = p->flags & PACKET_F_V6;

	if (p->l3_off != ETH_HLEN || !same_family(p, f))
		return tc_drop(DROP_REWRITE);
	if (hop)
		ifindex = hop->ifindex;
	if (v6 ? tunnel_v6(skb, p, f, source, hop) : tunnel_v4(skb, p, f, source, hop))
		return tc_drop(DROP_REWRITE);
	count(COUNTER_ENCAPSULATED);
	touch(f, p);
	half_touch(p, f);
	if (hop)
		return bpf_redirect(ifindex, 0);
	return tc_resolve(skb, p, source, &f->new_daddr, generation);
}
