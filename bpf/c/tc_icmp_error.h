// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Making ICMP errors (RFC 792, RFC 1812 4.3.2, RFC 4443) out of the packets they are about. */
#pragma once

#include "tc_forward.h"

/* Type in the high byte, code in the low one. */
#define ICMP_HOST_UNREACHABLE 0x0301
#define ICMP_PORT_UNREACHABLE 0x0303
#define ICMP_TOO_BIG 0x0304
#define ICMP_EXPIRED 0x0b00
#define ICMP6_ADDRESS_UNREACHABLE 0x0103
#define ICMP6_PORT_UNREACHABLE 0x0104
#define ICMP6_TOO_BIG 0x0200
#define ICMP6_EXPIRED 0x0300

#define ERRORS_PER_SECOND 1000 /* on one CPU (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f) */
#define SILENT 1

/* How much is quoted, and what else put_error must know, packed to keep to five arguments. */
#define QUOTE_LENGTH 0x00ffffff
#define QUOTE_PARTIAL 0x80000000  /* its checksum is completed on transmission */
#define QUOTE_IN_PLACE 0x40000000 /* the headers go where the packet had bytes before */

struct error_header {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 number;
};

static __always_inline __u32 ip_size(const struct packet *p)
{
	return p->flags & PACKET_F_V6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* check_offset is where the L4 header has its checksum. */
static __always_inline __u32 check_offset(const struct packet *p)
{
	if (p->key.proto == IPPROTO_TCP)
		return offsetof(struct tcphdr, check);
	if (p->key.proto == IPPROTO_UDP)
		return offsetof(struct udphdr, check);
	return offsetof(struct sctp_header, checksum);
}

/* error_allowed takes one from this second's budget of errors. */
static __always_inline int error_allowed(const struct packet *p)
{
	__u32 zero = 0, second = p->now / (cfg_hz ? cfg_hz : 250);
	struct workspace *w = bpf_map_lookup_elem(&workspaces, &zero);

	if (!w)
		return 0;
	if (w->second != second) {
		w->second = second;
		w->errors = 0;
	}
	return w->errors++ < ERRORS_PER_SECOND;
}

/* is_partial tells whether the checksum field holds the pseudo header's sum only, to be
 * completed on transmission. The packet does not say so, but the checksum helper leaves the
 * field alone in exactly that case. */
static __noinline int is_partial(struct __sk_buff *skb, __u32 off)
{
	__u16 before = 0, after = 0;

	bpf_skb_load_bytes(skb, off, &before, sizeof(before));
	bpf_l4_csum_replace(skb, off, 0, 1, 2);
	bpf_skb_load_bytes(skb, off, &after, sizeof(after));
	bpf_l4_csum_replace(skb, off, 1, 0, 2); /* a sum over the whole packet, if there is one, fits again */
	return before == after;
}

/* pseudo_sum is the pseudo header's share of a checksum; an answer's is that of its question. */
static __always_inline __u64 pseudo_sum(const struct packet *p, __u32 proto, __u32 length)
{
	int v6 = p->flags & PACKET_F_V6;

	return addr_sum(&p->key.saddr, v6) + addr_sum(&p->key.daddr, v6) + bpf_htons(proto) +
	       bpf_htons(length);
}

/* put_ip writes the IP header of an answer to p, which carries payload bytes. */
static __noinline int put_ip(struct __sk_buff *skb, const struct packet *p, __u32 payload,
			     __u32 proto, __u32 flags)
{
	if (p->flags & PACKET_F_V6) {
		struct ipv6hdr ip = {};

		ip.version = 6;
		ip.payload_len = bpf_htons(payload);
		ip.nexthdr = proto;
		ip.hop_limit = 64;
		__builtin_memcpy(&ip.saddr, &p->key.daddr, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &p->key.saddr, sizeof(ip.daddr));
		return bpf_skb_store_bytes(skb, p->l3_off, &ip, sizeof(ip), flags);
	}
	struct iphdr ip = {};

	ip.version = 4;
	ip.ihl = 5;
	ip.tot_len = bpf_htons(sizeof(ip) + payload);
	ip.frag_off = bpf_htons(0x4000);
	ip.ttl = 64;
	ip.protocol = proto;
	ip.saddr = p->key.daddr.w[3];
	ip.daddr = p->key.saddr.w[3];
	ip.check = ~fold(sum_words(&ip, sizeof(ip) / 2));
	return bpf_skb_store_bytes(skb, p->l3_off, &ip, sizeof(ip), flags);
}

/* insert_error_headers makes room for the headers of an ICMP error before the IP header, with
 * the link header turned. What is put in there is no part of a sum that the device computed
 * over the packet (CHECKSUM_COMPLETE): the kernel adds it as if it were a link header. */
static __noinline int insert_error_headers(struct __sk_buff *skb, const struct packet *p)
{
	__u32 size = ip_size(p) + sizeof(struct error_header);
	__u8 link[ETH_HLEN + VLAN_HLEN], turned[ETH_HLEN + VLAN_HLEN];

	if (bpf_skb_load_bytes(skb, 0, link, sizeof(link)) || bpf_skb_change_head(skb, size, 0))
		return -1;
	__builtin_memcpy(turned, link + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(turned + ETH_ALEN, link, ETH_ALEN);
	__builtin_memcpy(turned + 2 * ETH_ALEN, link + 2 * ETH_ALEN, sizeof(link) - 2 * ETH_ALEN);
	/* Four bytes too many without a tag: the IP header comes over them. */
	return bpf_skb_store_bytes(skb, 0, turned, sizeof(turned), 0);
}

/* quote_sum sums up length bytes from off on. */
static __noinline int quote_sum(struct __sk_buff *skb, __u32 off, __u32 length, __u32 *sum)
{
	struct workspace *w;
	__u32 zero = 0;
	__s64 result;

	w = bpf_map_lookup_elem(&workspaces, &zero);
	if (!w || !length || length > QUOTE_MAX)
		return -1;
	asm volatile("" : "+r"(length)); /* so that the bounds stay on the value that is used */
	if (length < 4 || length > QUOTE_MAX)
		return -1;
	if (bpf_skb_load_bytes(skb, off, w->quote, length))
		return -1;
	*(__u32 *)(w->quote + (length & 0x3ff)) = 0;
	result = bpf_csum_diff(NULL, 0, (__be32 *)w->quote, (length + 3) & ~3U, 0);
	*sum = result;
	return 0;
}

/* put_error writes the IP and ICMP headers of an error to the source of p in front of the
 * quoted packet, and cuts that to a sensible size. Where the quoted L4 checksum is completed on
 * transmission, the segment with it will sum up to the complement of what stands in the field now,
 * so the ICMP checksum can be made right for then. */
static __noinline int put_error(struct __sk_buff *skb, const struct packet *p, __u32 error,
				__u32 number, __u32 quote)
{
	__u32 length = quote & QUOTE_LENGTH, at = p->l3_off + ip_size(p), sum = 0, summed;
	__u32 flags = quote & QUOTE_IN_PLACE ? BPF_F_RECOMPUTE_CSUM : 0;
	__u32 proto = p->flags & PACKET_F_V6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	struct error_header h = {};
	__u64 total;
	__u16 field = 0;

	if (length > QUOTE_MAX)
		length = QUOTE_MAX;
	if (bpf_skb_change_tail(skb, at + sizeof(h) + length, 0))
		return -1;
	summed = length;
	if (quote & QUOTE_PARTIAL) {
		summed = p->l4_off - p->l3_off;
		if (bpf_skb_load_bytes(skb, at + sizeof(h) + summed + check_offset(p), &field, sizeof(field)))
			return -1;
		field = ~field;
	}
	if (quote_sum(skb, at + sizeof(h), summed, &sum))
		return -1;
	h.type = error >> 8;
	h.code = error;
	h.number = bpf_htonl(number);
	total = (__u64)sum + field + sum_words(&h, sizeof(h) / 2);
	if (p->flags & PACKET_F_V6)
		total += pseudo_sum(p, proto, sizeof(h) + length);
	h.check = ~fold(total);
	if (put_ip(skb, p, sizeof(h) + length, proto, flags))
		return -1;
	return bpf_skb_store_bytes(skb, at, &h, sizeof(h), flags);
}
