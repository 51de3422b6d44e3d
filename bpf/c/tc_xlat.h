// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* From one IP family to the other: the header translation of RFC 7915, with the addresses of the
 * flow. Nothing is known here that is not in the packet, the flow and the way out. */
#pragma once

#include "options.h"
#include "sum.h"
#include "tc_forward.h"

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IPV6_MIN_MTU 1280
#define V4_ALWAYS_FITS 1260  /* RFC 7915, 5.1: no larger packet leaves without DF */
#define HEADER_DIFFERENCE 20 /* of the two IP headers */

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* in units of 8 octets, from bit 3 on; bit 0: more */
	__be32 id;
};

/* Frames from the first byte on. The padding aligns the IP header. */
struct frame_v4 {
	__u8 pad[2];
	struct ethhdr eth;
	struct iphdr ip;
};

struct frame_v6 {
	__u8 pad[2];
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct fragment_header fragment;
};

_Static_assert(sizeof(struct frame_v4) == 36, "frame_v4");
_Static_assert(sizeof(struct frame_v6) == 64, "frame_v6");

/* flow_of finds the entry again by which an earlier program decided to forward. */
static __always_inline struct flow *flow_of(const struct flow_key *key)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);

	return f ? f : half_copy(key);
}

static __always_inline void set_hop(struct ethhdr *eth, const struct next_hop *hop)
{
	if (!hop)
		return;
	__builtin_memcpy(eth->h_dest, hop->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, hop->smac, ETH_ALEN);
}

/* store_frame writes a link header and length bytes that follow it. The link header is no part of
 * the sum that a device computes over a packet, and so must not be recomputed into it. */
static __always_inline int store_frame(struct __sk_buff *skb, const struct ethhdr *eth, __u32 length)
{
	void *data, *end;

	if (bpf_skb_store_bytes(skb, ETH_HLEN, eth + 1, length, BPF_F_RECOMPUTE_CSUM))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN > end)
		return -1;
	__builtin_memcpy(data, eth, ETH_HLEN);
	return 0;
}

/* xlat_diff is the difference of the two pseudo headers: length and protocol weigh the same in
 * both (RFC 793, 3.1; RFC 8200, 8.1). */
static __always_inline __u32 xlat_diff(const struct flow_key *from, const struct flow *to, int v6)
{
	__u64 less = addr_sum(&from->saddr, v6) + addr_sum(&from->daddr, v6);
	__u64 more = addr_sum(&to->new_saddr, !v6) + addr_sum(&to->new_daddr, !v6);

	return fold32(more + (__u32)~fold32(less));
}

/* clamp_mss lowers the maximum segment size that a SYN announces to limit. */
static __noinline int clamp_mss(struct __sk_buff *skb, const struct packet *p, __u32 limit)
{
	__u32 off = p->l4_off + sizeof(struct tcphdr), check = p->l4_off + offsetof(struct tcphdr, check), mss;
	struct option o = {};
	__u8 offset = 0;
	__be16 value;
	int at;

	if (bpf_skb_load_bytes(skb, p->l4_off + 12, &offset, 1))
		return -1;
	at = find_option(skb, off, (offset >> 4) * 4 - sizeof(struct tcphdr), OPTION_MSS);
	if (at < 0)
		return 0;
	off += at;
	if (bpf_skb_load_bytes(skb, off, &o, sizeof(o)))
		return -1;
	mss = o.value[0] << 8 | o.value[1];
	if (o.length != sizeof(o) || mss <= limit)
		return 0;
	value = bpf_htons(limit);
	if (bpf_skb_store_bytes(skb, off + offsetof(struct option, value), &value, sizeof(value), 0))
		return -1;
	/* At an odd place its bytes weigh the other way round. */
	if (at & 1)
		return bpf_l4_csum_replace(skb, check, mss, limit & 0xffff, 2);
	return bpf_l4_csum_replace(skb, check, bpf_htons(mss), value, 2);
}

/* udp_sum gives a datagram that had no checksum the one that IPv6 wants (RFC 7915, 4.5). The
 * ports are written already. */
static __noinline int udp_sum(struct __sk_buff *skb, const struct packet *p, const struct flow *f)
{
	__s64 sum;
	__u16 check;

	if (p->flags & PACKET_F_FRAGMENT || skb->gso_size)
		return -1; /* its whole is not here */
	sum = bytes_sum(skb, p->l4_off, p->payload);
	if (sum < 0)
		return -1;
	sum += addr_sum(&f->new_saddr, 1) + addr_sum(&f->new_daddr, 1);
	sum += bpf_htonl(p->payload);
	sum += bpf_htonl(IPPROTO_UDP);
	check = ~fold(fold32(sum));
	if (!check)
		check = 0xffff;
	return bpf_skb_store_bytes(skb, p->l4_off + offsetof(struct udphdr, check), &check,
				   sizeof(check), BPF_F_RECOMPUTE_CSUM);
}

/* xlat_l4 changes ports and checksum, and what a SYN says of segments, which are to be no
 * larger than mss. */
static __noinline int xlat_l4(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
			      __u32 mss)
{
	__u32 old = port_pair(p->key.sport, p->key.dport), ports = port_pair(f->new_sport, f->new_dport);
	int v6 = p->flags & PACKET_F_V6;
	__u16 check = 1;

	if (p->flags & PACKET_F_BODY)
		return 0;
	if (p->key.proto == IPPROTO_UDP &&
	    bpf_skb_load_bytes(skb, p->l4_off + offsetof(struct udphdr, check), &check, sizeof(check)))
		return -1;
	if (p->key.proto == IPPROTO_SCTP) {
		if (tc_fix_sctp(skb, p, ports))
			return -1;
	} else if (check && tc_fix_l4(skb, p, xlat_diff(&p->key, f, v6), old, ports)) {
		return -1;
	}
	if (p->key.proto == IPPROTO_TCP && p->tcp_flags & TCP_SYN && clamp_mss(skb, p, mss))
		return -1;
	/* The checksum makes up for the ports, if there is one. */
	if (bpf_skb_store_bytes(skb, p->l4_off, &ports, sizeof(ports), check ? 0 : BPF_F_RECOMPUTE_CSUM))
		return -1;
	return check || v6 ? 0 : udp_sum(skb, p, f);
}

/* tc_resize makes of the headers before the payload such of the other family, change bytes
 * longer than its plain header would be. */
static __always_inline int tc_resize(struct __sk_buff *skb, __be16 proto, int change)
{
	if (bpf_skb_change_proto(skb, proto, 0))
		return -1;
	return change ? bpf_skb_adjust_room(skb, change, BPF_ADJ_ROOM_NET, 0) : 0;
}

/* see_extensions looks at what is to be left out of an IPv6 packet. The fragment header, if
 * there is one, is copied. Negative: a routing header that has not been through (RFC 7915, 5.1). */
static __noinline int see_extensions(struct __sk_buff *skb, const struct packet *p, __u32 next,
				     struct fragment_header *fragment)
{
	__u32 off = p->l3_off + sizeof(struct ipv6hdr);
	struct extension e;
	int i;

	for (i = 0; i < EXTENSIONS_MAX && off < p->l4_off; i++) {
		if (bpf_skb_load_bytes(skb, off, &e, sizeof(e)))
			return -1;
		if (next == NEXT_ROUTING && e.offset & bpf_htons(0xff))
			return -1;
		off += 8;
		if (next == NEXT_FRAGMENT) {
			fragment->offset = e.offset;
			fragment->id = e.id;
		} else {
			off += e.length * 8;
		}
		next = e.next;
	}
	return 0;
}

/* write_v4 fills the header of a packet of length bytes. fragment is what its IPv6 form had. */
static __always_inline void write_v4(struct iphdr *ip, const struct packet *p, __u32 length,
				     const struct fragment_header *fragment)
{
	__u32 offset = bpf_ntohs(fragment->offset);

	ip->version = 4;
	ip->ihl = 5;
	/* Only segmentation offload makes it longer, and understands the zero. */
	ip->tot_len = length > 0xffff ? 0 : bpf_htons(length);
	if (p->flags & PACKET_F_FRAG_HEADER) {
		ip->id = bpf_htons(bpf_ntohl(fragment->id));
		ip->frag_off = bpf_htons(offset >> 3 | (offset & 1 ? IP_MF : 0));
	} else {
		ip->id = bpf_get_prandom_u32();
		ip->frag_off = length > V4_ALWAYS_FITS ? bpf_htons(IP_DF) : 0;
	}
	ip->ttl = p->ttl - 1;
	ip->protocol = p->key.proto;
}

/* to_v4 translates the headers; L4 is done. */
static __noinline int to_v4(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
			    const struct next_hop *hop)
{
	__u32 extra = p->l4_off - ETH_HLEN - sizeof(struct ipv6hdr);
	struct fragment_header fragment = {};
	struct frame_v4 to = {};
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, 0, &to.eth, sizeof(to.eth)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) ||
	    see_extensions(skb, p, ip.nexthdr, &fragment))
		return -1;
	set_hop(&to.eth, hop);
	to.eth.h_proto = bpf_htons(ETH_P_IP);
	write_v4(&to.ip, p, sizeof(to.ip) + p->payload, &fragment);
	to.ip.tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	to.ip.saddr = f->new_saddr.w[3];
	to.ip.daddr = f->new_daddr.w[3];
	to.ip.check = ~fold(sum_words(&to.ip, sizeof(to.ip) / 2));
	if (extra > EXTENSIONS_END || tc_resize(skb, bpf_htons(ETH_P_IP), -(int)extra))
		return -1;
	return store_frame(skb, &to.eth, sizeof(to.ip));
}

/* has_source_route tells whether an IPv4 packet is still to visit named places (RFC 7915, 4.1). */
static __noinline int has_source_route(struct __sk_buff *skb, __u32 length)
{
	__u32 off = ETH_HLEN + sizeof(struct iphdr);
	struct option o = {};
	int at = find_option(skb, off, length, OPTION_LOOSE_ROUTE);

	if (at < 0)
		at = find_option(skb, off, length, OPTION_STRICT_ROUTE);
	if (at < 0)
		return 0;
	if (bpf_skb_load_bytes(skb, off + at, &o, sizeof(o)))
		return 1;
	/* Behind the length stands a pointer, beyond the end when all places have been visited. */
	return o.value[0] <= o.length;
}

/* to_v6 translates the headers; L4 is done. A fragment gets a fragment header. */
static __noinline int to_v6(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
			    const struct next_hop *hop)
{
	__u32 options = p->l4_off - ETH_HLEN - sizeof(struct iphdr), extra = 0, length, offset;
	struct frame_v6 to = {};
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, 0, &to.eth, sizeof(to.eth)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || options > OPTIONS_MAX ||
	    (options && has_source_route(skb, options)))
		return -1;
	set_hop(&to.eth, hop);
	to.eth.h_proto = bpf_htons(ETH_P_IPV6);
	to.ip.version = 6;
	to.ip.priority = ip.tos >> 4;
	to.ip.flow_lbl[0] = ip.tos << 4;
	to.ip.nexthdr = p->key.proto;
	to.ip.hop_limit = p->ttl - 1;
	if (ip.frag_off & bpf_htons(IP_MF | 0x1fff)) {
		extra = sizeof(to.fragment);
		offset = bpf_ntohs(ip.frag_off);
		to.ip.nexthdr = NEXT_FRAGMENT;
		to.fragment.next = p->key.proto;
		to.fragment.offset = bpf_htons(offset << 3 | (offset & IP_MF ? 1 : 0));
		to.fragment.id = bpf_htonl(bpf_ntohs(ip.id));
	}
	length = p->payload + extra;
	to.ip.payload_len = length > 0xffff ? 0 : bpf_htons(length);
	__builtin_memcpy(&to.ip.saddr, &f->new_saddr, sizeof(f->new_saddr));
	__builtin_memcpy(&to.ip.daddr, &f->new_daddr, sizeof(f->new_daddr));
	if (tc_resize(skb, bpf_htons(ETH_P_IPV6), (int)extra - (int)options))
		return -1;
	if (extra)
		return store_frame(skb, &to.eth, sizeof(to.ip) + sizeof(to.fragment));
	return store_frame(skb, &to.eth, sizeof(to.ip));
}

/* xlat_mss is the largest segment that fits both ways: what answers the SYN at hand comes in
 * where it leaves, and leaves where it came in. */
static __always_inline __u32 xlat_mss(struct __sk_buff *skb, __u32 out, int v6)
{
	__u32 in = tc_mtu(skb, 0), a, b;

	a = in - (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	b = out - (v6 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (!in || (out && b < a))
		a = b;
	return a - sizeof(struct tcphdr);
}

/* xlat_excess returns 0 when the translated packet fits an MTU, else the largest packet that
 * its sender may send. A router would cut an IPv4 packet without DF to pieces; this one asks its
 * sender to. */
static __always_inline __u32 xlat_excess(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	int v6 = p->flags & PACKET_F_V6;
	__u32 length = tc_segment(skb, p), room;

	if (v6) {
		if (!mtu || length + sizeof(struct iphdr) <= mtu)
			return 0;
		room = mtu + HEADER_DIFFERENCE;
		if (p->flags & PACKET_F_FRAG_HEADER)
			room += sizeof(struct fragment_header);
		return room < IPV6_MIN_MTU ? IPV6_MIN_MTU : room;
	}
	length += sizeof(struct ipv6hdr);
	room = mtu - HEADER_DIFFERENCE;
	if (p->flags & (PACKET_F_FIRST | PACKET_F_BODY)) {
		length += sizeof(struct fragment_header);
		room -= sizeof(struct fragment_header);
	}
	return !mtu || length <= mtu ? 0 : room;
}

/* xlat translates and sends. */
static __noinline int xlat(struct __sk_buff *skb, const struct packet *p, struct flow *f, __u32 mtu)
{
	__u32 generation, ifindex = 0;
	struct next_hop *hop = next_hop_of(p, &f->new_daddr, &generation);
	int v6 = p->flags & PACKET_F_V6;

	if (p->l3_off != ETH_HLEN) /* a second VLAN tag, behind which the kernel does not look */
		return tc_drop(DROP_TRANSLATE);
	if (hop)
		ifindex = hop->ifindex;
	if (xlat_l4(skb, p, f, xlat_mss(skb, mtu, v6)))
		return tc_drop(DROP_TRANSLATE);
	if (v6 ? to_v4(skb, p, f, hop) : to_v6(skb, p, f, hop))
		return tc_drop(DROP_TRANSLATE);
	count(COUNTER_TRANSLATED);
	touch(f, p);
	half_touch(p, f);
	if (hop)
		return bpf_redirect(ifindex, 0);
	return tc_resolve(skb, p, &f->new_saddr, &f->new_daddr, generation);
}
