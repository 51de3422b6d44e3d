// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* ICMP errors about packets of flows whose ends are of different families (RFC 7915, 4.2 and
 * 5.2). Who sends the error has no address in the other family, so it comes from the address
 * that its receiver has been talking to. */
#pragma once

#include "tc_chain.h"
#include "tc_xlat.h"
#include "xlat_icmp.h"

#define TYPE_TOO_BIG 2    /* of ICMPv6 */
#define ERROR_MAX_V4 576  /* RFC 1812, 4.3.2.3 */
#define ERROR_MAX_V6 1280 /* RFC 4443, 2.4 (c) */

/* What an error quotes: the beginning of a packet that we have sent. */
struct quote {
	struct flow_key key; /* in which an answer to the packet arrives */
	__be32 id;           /* of a fragment, as IPv6 has it */
	__u32 l4_off;
	__u32 length; /* of the packet, after its IP header(s) */
	__u32 ports;  /* as quoted */
	__u8 tos;
	__u8 ttl;
	__u8 fragment; /* the first one of several, or of one */
	__u8 more;
};

/* Frames from the first byte to the end of the quoted IP header. */
struct error_v4 {
	__u8 pad[2];
	struct ethhdr eth;
	struct iphdr outer;
	struct icmp_head icmp;
	struct iphdr ip;
};

struct error_v6 {
	__u8 pad[2];
	struct ethhdr eth;
	struct ipv6hdr outer;
	struct icmp_head icmp;
	struct ipv6hdr ip;
	struct fragment_header fragment;
};

_Static_assert(sizeof(struct error_v4) == 64, "error_v4");
_Static_assert(sizeof(struct error_v6) == 112, "error_v6");

#define ERROR_V4 (sizeof(struct error_v4) - 2)
#define ERROR_V6 (sizeof(struct error_v6) - 2 - sizeof(struct fragment_header))

static __noinline int quote_v4(struct __sk_buff *skb, __u32 off, struct quote *q)
{
	struct iphdr ip;
	__u32 header, total;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
		return -1;
	header = ip.ihl * 4;
	total = bpf_ntohs(ip.tot_len);
	if (ip.version != 4 || header < sizeof(ip) || total < header || ip.frag_off & bpf_htons(0x1fff))
		return -1;
	map_v4(&q->key.saddr, ip.daddr);
	map_v4(&q->key.daddr, ip.saddr);
	q->key.proto = ip.protocol;
	q->tos = ip.tos;
	q->ttl = ip.ttl;
	q->l4_off = off + header;
	q->length = total - header;
	q->fragment = q->more = !!(ip.frag_off & bpf_htons(IP_MF));
	q->id = bpf_htonl(bpf_ntohs(ip.id));
	return 0;
}

/* quote_v6 leaves out the extension headers, as for the packet itself (RFC 7915, 5.1.1 and 5.3). */
static __noinline int quote_v6(struct __sk_buff *skb, __u32 off, struct quote *q)
{
	struct chain c = {.off = off + sizeof(struct ipv6hdr)};
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version != 6)
		return -1;
	__builtin_memcpy(&q->key.saddr, &ip.daddr, sizeof(q->key.saddr));
	__builtin_memcpy(&q->key.daddr, &ip.saddr, sizeof(q->key.daddr));
	q->tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	q->ttl = ip.hop_limit;
	c.next = ip.nexthdr;
	if (follow_chain(skb, &c))
		return -1;
	q->key.proto = c.next;
	q->l4_off = c.off;
	q->length = bpf_ntohs(ip.payload_len);
	off = c.off - off - sizeof(ip);
	if (q->length < off)
		return -1;
	q->length -= off;
	q->id = c.id;
	q->fragment = c.fragment;
	q->more = c.more;
	return 0;
}

/* see_quote reads what the error at hand quotes. */
static __noinline int see_quote(struct __sk_buff *skb, const struct packet *p, struct quote *q)
{
	__u32 off = p->l4_off + sizeof(struct icmp_head);
	__be16 ports[2];

	if (p->flags & PACKET_F_V6 ? quote_v6(skb, off, q) : quote_v4(skb, off, q))
		return -1;
	if (q->key.proto != IPPROTO_TCP && q->key.proto != IPPROTO_UDP && q->key.proto != IPPROTO_SCTP)
		return -1;
	if (bpf_skb_load_bytes(skb, q->l4_off, ports, sizeof(ports)))
		return -1;
	q->key.sport = ports[1];
	q->key.dport = ports[0];
	q->ports = port_pair(ports[0], ports[1]);
	return 0;
}

/* quote_check makes the checksum of the quoted packet fit, if it was quoted as far: the error
 * ends at end. A datagram without one stays without. */
static __noinline int quote_check(struct __sk_buff *skb, const struct quote *q, const struct flow *f,
				  __u32 end)
{
	__u32 off = q->l4_off + offsetof(struct tcphdr, check);
	__u16 check;
	__u64 diff;

	if (q->key.proto == IPPROTO_UDP)
		off = q->l4_off + offsetof(struct udphdr, check);
	if (q->key.proto == IPPROTO_SCTP || off + sizeof(check) > end)
		return 0;
	if (bpf_skb_load_bytes(skb, off, &check, sizeof(check)))
		return -1;
	if (!check && q->key.proto == IPPROTO_UDP)
		return 0;
	diff = xlat_diff(&q->key, f, !is_v4(&q->key.saddr));
	diff += port_pair(f->new_dport, f->new_sport);
	diff += (__u32)~q->ports;
	check = csum_add(check, fold32(diff));
	if (!check && q->key.proto == IPPROTO_UDP)
		check = 0xffff;
	return bpf_skb_store_bytes(skb, off, &check, sizeof(check), BPF_F_RECOMPUTE_CSUM);
}

/* told_mtu is what the receiver is to be told. IPv4's MTU is 20 less for the same packet. */
static __always_inline __u32 told_mtu(struct __sk_buff *skb, const struct packet *p,
				      const struct quote *q, __u32 told, __u32 out)
{
	__u32 in = tc_mtu(skb, 0), mtu;

	if (p->flags & PACKET_F_V6 && told < IPV6_MIN_MTU) /* no way is so narrow (RFC 8201, 4) */
		told = IPV6_MIN_MTU;
	if (p->flags & PACKET_F_V6)
		return least_mtu(told, in, out ? out + HEADER_DIFFERENCE : 0) - HEADER_DIFFERENCE;
	if (!told)
		told = plateau(q->length + sizeof(struct iphdr));
	mtu = least_mtu(told + HEADER_DIFFERENCE, in ? in + HEADER_DIFFERENCE : 0, out);
	return mtu < IPV6_MIN_MTU ? IPV6_MIN_MTU : mtu;
}

/* xlat_head translates the head of the error. out is the MTU of the way to its receiver. */
static __noinline int xlat_head(struct __sk_buff *skb, const struct packet *p, const struct quote *q,
				struct icmp_head *h, __u32 out)
{
	__u32 too_big;

	if (p->flags & PACKET_F_V6) {
		if (h->type != TYPE_TOO_BIG)
			return icmp_to_v4(h);
		too_big = told_mtu(skb, p, q, bpf_ntohl(h->rest), out);
		return set_icmp(h, 3, 4, bpf_htonl(too_big & 0xffff));
	}
	if (h->type != 3 || h->code != 4)
		return icmp_to_v6(h);
	too_big = told_mtu(skb, p, q, bpf_ntohl(h->rest) & 0xffff, out);
	return set_icmp(h, TYPE_TOO_BIG, 0, bpf_htonl(too_big));
}

/* quoted_bytes is how much of the error to keep from the quoted packet's L4 header on: not the
 * extensions behind it (RFC 4884), and no more than an error of the other family may have. */
static __always_inline __u32 quoted_bytes(const struct packet *p, const struct quote *q,
					  const struct icmp_head *h)
{
	__u32 head = q->l4_off - p->l4_off, all, most, limit;

	if (p->flags & PACKET_F_V6) {
		limit = (h->type == 1 || h->type == 3) ? h->b[0] * 8 : 0;
		most = ERROR_MAX_V4 - (ERROR_V4 - ETH_HLEN);
	} else {
		limit = h->b[1] * 4;
		if (h->type != 3 && h->type != 11 && h->type != 12)
			limit = 0;
		most = ERROR_MAX_V6 - (ERROR_V6 + sizeof(struct fragment_header) - ETH_HLEN);
	}
	all = p->payload > head ? p->payload - head : 0;
	if (limit) {
		limit += sizeof(struct icmp_head);
		limit = limit > head ? limit - head : 0;
		if (limit < all)
			all = limit;
	}
	return all < most ? all : most;
}

/* error_to_v4 replaces everything before the quoted L4 header. */
static __noinline int error_to_v4(struct __sk_buff *skb, const struct packet *p, const struct quote *q,
				  const struct flow *f, const struct icmp_head *h)
{
	struct error_v4 to = {};
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, 0, &to.eth, ETH_HLEN) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	to.eth.h_proto = bpf_htons(ETH_P_IP);
	to.outer.version = 4;
	to.outer.ihl = 5;
	to.outer.tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	to.outer.tot_len = bpf_htons(skb->len - q->l4_off + ERROR_V4 - ETH_HLEN);
	to.outer.id = bpf_get_prandom_u32();
	to.outer.ttl = p->ttl - 1;
	to.outer.protocol = IPPROTO_ICMP;
	to.outer.saddr = f->new_saddr.w[3];
	to.outer.daddr = f->new_daddr.w[3];
	to.outer.check = ~fold(sum_words(&to.outer, sizeof(to.outer) / 2));
	to.icmp = *h;
	to.ip.version = 4;
	to.ip.ihl = 5;
	to.ip.tos = q->tos;
	to.ip.tot_len = bpf_htons(sizeof(to.ip) + q->length);
	to.ip.id = bpf_htons(bpf_ntohl(q->id));
	if (q->fragment)
		to.ip.frag_off = q->more ? bpf_htons(IP_MF) : 0;
	else if (sizeof(to.ip) + q->length > V4_ALWAYS_FITS)
		to.ip.frag_off = bpf_htons(IP_DF);
	to.ip.ttl = q->ttl;
	to.ip.protocol = q->key.proto;
	to.ip.saddr = f->new_daddr.w[3];
	to.ip.daddr = f->new_saddr.w[3];
	to.ip.check = ~fold(sum_words(&to.ip, sizeof(to.ip) / 2));
	if (tc_resize(skb, bpf_htons(ETH_P_IP), (int)ERROR_V4 + HEADER_DIFFERENCE - (int)q->l4_off))
		return -1;
	return store_frame(skb, &to.eth, ERROR_V4 - ETH_HLEN);
}

/* error_to_v6 does the same in the other direction. */
static __noinline int error_to_v6(struct __sk_buff *skb, const struct packet *p, const struct quote *q,
				  const struct flow *f, const struct icmp_head *h)
{
	__u32 size = ERROR_V6 + (q->fragment ? sizeof(struct fragment_header) : 0);
	__u32 tail = skb->len - q->l4_off;
	struct error_v6 to = {};
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, 0, &to.eth, ETH_HLEN) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	to.eth.h_proto = bpf_htons(ETH_P_IPV6);
	to.outer.version = 6;
	to.outer.priority = ip.tos >> 4;
	to.outer.flow_lbl[0] = ip.tos << 4;
	to.outer.payload_len = bpf_htons(tail + size - ETH_HLEN - sizeof(to.outer));
	to.outer.nexthdr = IPPROTO_ICMPV6;
	to.outer.hop_limit = p->ttl - 1;
	__builtin_memcpy(&to.outer.saddr, &f->new_saddr, sizeof(f->new_saddr));
	__builtin_memcpy(&to.outer.daddr, &f->new_daddr, sizeof(f->new_daddr));
	to.icmp = *h;
	to.ip.version = 6;
	to.ip.priority = q->tos >> 4;
	to.ip.flow_lbl[0] = q->tos << 4;
	to.ip.payload_len = bpf_htons(q->length + (q->fragment ? sizeof(to.fragment) : 0));
	to.ip.nexthdr = q->fragment ? NEXT_FRAGMENT : q->key.proto;
	to.ip.hop_limit = q->ttl;
	__builtin_memcpy(&to.ip.saddr, &f->new_daddr, sizeof(f->new_daddr));
	__builtin_memcpy(&to.ip.daddr, &f->new_saddr, sizeof(f->new_saddr));
	to.fragment.next = q->key.proto;
	to.fragment.offset = q->more ? bpf_htons(1) : 0;
	to.fragment.id = q->id;
	if (tc_resize(skb, bpf_htons(ETH_P_IPV6), (int)size - HEADER_DIFFERENCE - (int)q->l4_off))
		return -1;
	if (q->fragment)
		return store_frame(skb, &to.eth, ERROR_V6 + sizeof(to.fragment) - ETH_HLEN);
	return store_frame(skb, &to.eth, ERROR_V6 - ETH_HLEN);
}

/* icmpv6_sum is what ICMPv6 adds to the sum of the message, and ICMP does not. */
static __always_inline __u64 icmpv6_sum(const struct addr *a, const struct addr *b, __u32 length)
{
	return addr_sum(a, 1) + addr_sum(b, 1) + bpf_htonl(length) + bpf_htonl(IPPROTO_ICMPV6);
}

/* finish_error writes the checksum. before is the sum of the whole error as it came, without a
 * fault 0xffff; so a damaged error stays damaged. */
static __noinline int finish_error(struct __sk_buff *skb, const struct packet *p, const struct flow *f,
				   __u32 before)
{
	int to_v6 = !(p->flags & PACKET_F_V6);
	__u32 off = ETH_HLEN + (to_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)), length = skb->len - off;
	__s64 sum = bytes_sum(skb, off, length);
	__u16 check;

	if (sum < 0)
		return -1;
	sum = fold32(sum) + (__u64)(__u32)~before;
	if (to_v6)
		sum += icmpv6_sum(&f->new_saddr, &f->new_daddr, length);
	check = ~fold(fold32(sum));
	return bpf_skb_store_bytes(skb, off + offsetof(struct icmp_head, check), &check, sizeof(check), BPF_F_RECOMPUTE_CSUM);
}

/* xlat_error changes the whole packet, but for the way it goes. */
static __noinline int xlat_error(struct __sk_buff *skb, const struct packet *p, struct quote *q,
				 const struct flow *f, __u32 mtu)
{
	__u32 before, ports = port_pair(f->new_dport, f->new_sport), end;
	struct icmp_head h;
	__s64 sum;

	if (bpf_skb_load_bytes(skb, p->l4_off, &h, sizeof(h)))
		return -1;
	sum = bytes_sum(skb, p->l4_off, p->payload);
	if (sum < 0)
		return -1;
	if (p->flags & PACKET_F_V6)
		sum = fold32(sum) + icmpv6_sum(&p->key.saddr, &p->key.daddr, p->payload);
	before = fold(fold32(sum));
	end = q->l4_off + quoted_bytes(p, q, &h);
	h.check = 0;
	if (xlat_head(skb, p, q, &h, mtu) || bpf_skb_change_tail(skb, end, 0) ||
	    quote_check(skb, q, f, end) ||
	    bpf_skb_store_bytes(skb, q->l4_off, &ports, sizeof(ports), BPF_F_RECOMPUTE_CSUM))
		return -1;
	if (p->flags & PACKET_F_V6 ? error_to_v4(skb, p, q, f, &h) : error_to_v6(skb, p, q, f, &h))
		return -1;
	return finish_error(skb, p, f, before);
}

/* xlat_icmp translates an error and sends it to whom the quoted packet came from. */
static __always_inline int xlat_icmp(struct __sk_buff *skb, const struct packet *p)
{
	__u32 generation, mtu;
	struct quote q = {};
	struct flow *f;

	if (p->l3_off != ETH_HLEN || p->flags & PACKET_F_FRAGMENT || see_quote(skb, p, &q))
		return tc_drop(DROP_TRANSLATE);
	f = flow_of(&q.key);
	if (!f || same_family(p, f))
		return tc_drop(DROP_ICMP_UNKNOWN);
	if (p->ttl <= 1)
		return tc_drop(DROP_TTL);
	mtu = way_mtu(skb, p, &f->new_saddr, &f->new_daddr);
	if (xlat_error(skb, p, &q, f, mtu))
		return tc_drop(DROP_TRANSLATE);
	count(COUNTER_ICMP_ERROR);
	count(COUNTER_TRANSLATED);
	next_hop_of(p, &f->new_daddr, &generation); /* errors are rare: each asks the kernel for the way */
	return tc_resolve(skb, p, &f->new_saddr, &f->new_daddr, generation);
}
