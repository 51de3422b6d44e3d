// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* From bytes to struct packet. A packet whose headers contradict each other is kept as
 * PACKET_F_MALFORMED, so that it is dropped and counted when it is for a VIP; V_PASS means that
 * it is not even IP as we know it. */
#pragma once

#include "csum.h"
#include "sctp.h"

#define EXTENSIONS_MAX 6
#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_DESTINATION 60
#define EXTENSIONS_END 0x180 /* no upper layer begins beyond this offset */

static __always_inline void map_v4(struct addr *a, __be32 v4)
{
	a->d[0] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

static __always_inline int is_v4(const struct addr *a)
{
	return a->d[0] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline int malformed(struct packet *p)
{
	p->kind = KIND_OTHER;
	p->flags |= PACKET_F_MALFORMED;
	return V_CONTINUE;
}

static __always_inline int parse_tcp(struct tcphdr *tcp, void *end, struct packet *p)
{
	__u8 *bytes = (__u8 *)tcp;
	__u32 header;

	if ((void *)(tcp + 1) > end)
		return malformed(p);
	header = (bytes[12] >> 4) * 4;
	/* RFC 1858: a first fragment has the whole header. */
	if (header < sizeof(*tcp) || header > p->payload)
		return malformed(p);
	p->key.sport = tcp->source;
	p->key.dport = tcp->dest;
	p->tcp_flags = bytes[13];
	return V_CONTINUE;
}

static __always_inline int parse_udp(struct udphdr *udp, void *end, struct packet *p)
{
	__u32 length;

	if ((void *)(udp + 1) > end)
		return malformed(p);
	length = bpf_ntohs(udp->len);
	if (p->payload < sizeof(*udp) || (length && length < sizeof(*udp)))
		return malformed(p);
	if (!(p->flags & PACKET_F_FIRST) && length > p->payload)
		return malformed(p);
	p->key.sport = udp->source;
	p->key.dport = udp->dest;
	return V_CONTINUE;
}

/* parse_l4 reads ports and flags. */
static __always_inline int parse_l4(void *l4, void *end, struct packet *p, int deep)
{
	if (p->key.proto == IPPROTO_TCP)
		return parse_tcp(l4, end, p);
	if (p->key.proto == IPPROTO_UDP)
		return parse_udp(l4, end, p);
	if (p->key.proto == IPPROTO_ICMP || p->key.proto == IPPROTO_ICMPV6) {
		if (l4 + 8 > end || p->payload < 8)
			return malformed(p);
		p->icmp_type = *(__u8 *)l4;
		p->kind = KIND_ICMP;
		return V_CONTINUE;
	}
	if (p->key.proto == IPPROTO_SCTP)
		return !deep || parse_sctp(l4, end, p) ? V_CONTINUE : malformed(p);
	p->kind = KIND_OTHER;
	return V_CONTINUE;
}

static __always_inline int parse_fragment_v4(const struct iphdr *ip, struct packet *p)
{
	__be16 offset = ip->frag_off & bpf_htons(0x1fff);

	p->frag_id = ip->id;
	if (!offset) {
		p->flags |= PACKET_F_FIRST;
		return V_CONTINUE;
	}
	p->flags |= PACKET_F_LATER;
	/* RFC 1858, 4.2: it would overlay the flags of the first one. */
	if (offset == bpf_htons(1) && ip->protocol == IPPROTO_TCP)
		malformed(p);
	return V_CONTINUE;
}

/* long_header_bad checks the sum of a header with options. It reads the length by itself: one
 * handed over would have the verifier follow the caller once for each length. */
static __noinline int long_header_bad(const void *ip, const void *end)
{
	__u32 words = (*(const volatile __u8 *)ip & 15) * 2, sum = 0, i;
	const __u16 *word = ip;

	for (i = 0; i < 30 && i < words; i++) {
		if ((void *)(word + i + 1) > end)
			return 1;
		sum += word[i];
	}
	return fold(sum) != 0xffff;
}

static __always_inline int parse_v4(void *data, void *end, struct packet *p, int deep)
{
	struct iphdr *ip = data + p->l3_off;
	__u32 header, total;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return V_PASS;
	/* A number where the entry program needs one: the verifier of 6.1 loses its bounds. */
	header = deep ? ip->ihl * 4 : sizeof(*ip);
	total = bpf_ntohs(ip->tot_len);
	if (!total && p->segments > 1) /* longer than 16 bits can say: only receive offload makes it */
		total = p->bytes;
	map_v4(&p->key.saddr, ip->saddr);
	map_v4(&p->key.daddr, ip->daddr);
	p->key.proto = ip->protocol;
	p->ttl = ip->ttl;
	p->l4_off = p->l3_off + header;
	if (ip->ihl > 5) {
		p->flags |= PACKET_F_OPTIONS;
		if (!deep)
			return V_CONTINUE;
	}
	if (total < header || total > p->bytes)
		return malformed(p);
	p->payload = total - header;
	if (p->flags & PACKET_F_OPTIONS) {
		if (long_header_bad(ip, end))
			return malformed(p);
	} else if (fold(sum_words(ip, 10)) != 0xffff) {
		return malformed(p);
	}
	if (ip->frag_off & bpf_htons(0x3fff)) {
		parse_fragment_v4(ip, p);
		if (!deep || p->flags & PACKET_F_LATER)
			return V_CONTINUE;
	}
	return parse_l4((void *)ip + header, end, p, deep);
}

struct extension {
	__u8 next;
	__u8 length; /* in units of 8 octets, the first not counted; 0 in a fragment header */
	__be16 offset; /* in a routing header the type, and how many stops are left */
	__be32 id;
};

static __always_inline void parse_fragment_v6(const struct extension *e, struct packet *p)
{
	p->flags |= PACKET_F_FRAG_HEADER;
	p->frag_id = e->id;
	if (e->offset & bpf_htons(0xfff8)) {
		p->flags |= PACKET_F_LATER;
		if (e->next == IPPROTO_TCP && (e->offset & bpf_htons(0xfff8)) == bpf_htons(8))
			malformed(p);
	} else if (e->offset & bpf_htons(1)) {
		p->flags |= PACKET_F_FIRST;
	}
}

static __always_inline int is_extension(__u8 next)
{
	return next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT ||
	       next == NEXT_DESTINATION;
}

/* skip_extensions walks the headers that RFC 8200, 4.1 lets come before the upper layer. */
static __noinline int skip_extensions(void *data, void *end, struct packet *p)
{
	__u32 off = p->l4_off, size;
	struct extension *e;
	int i;

	for (i = 0; i < EXTENSIONS_MAX; i++) {
		if (!is_extension(p->key.proto))
			return V_CONTINUE;
		off &= 0x1ff; /* clang keeps it on the stack, where the verifier forgets its bound */
		e = data + off;
		if ((void *)(e + 1) > end)
			return malformed(p);
		p->flags |= PACKET_F_OPTIONS;
		size = 8;
		/* Not for us alone, and its checksum is for another address (RFC 8200, 4.4; RFC 5095). */
		if (p->key.proto == NEXT_ROUTING && e->offset & bpf_htons(0xff))
			return malformed(p);
		if (p->key.proto == NEXT_FRAGMENT)
			parse_fragment_v6(e, p);
		else
			size += e->length * 8;
		if (size > p->payload || off + size > EXTENSIONS_END)
			return malformed(p);
		p->payload -= size;
		p->key.proto = e->next;
		off += size;
		p->l4_off = off;
		if (p->flags & PACKET_F_LATER)
			return V_CONTINUE;
	}
	return malformed(p);
}

static __always_inline int parse_v6(void *data, void *end, struct packet *p, int deep)
{
	struct ipv6hdr *ip = data + p->l3_off;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return V_PASS;
	__builtin_memcpy(&p->key.saddr, &ip->saddr, sizeof(p->key.saddr));
	__builtin_memcpy(&p->key.daddr, &ip->daddr, sizeof(p->key.daddr));
	/* A mapped address on the wire (RFC 4038, 4.2) would be taken for an IPv4 flow. */
	if (is_v4(&p->key.saddr) || is_v4(&p->key.daddr))
		return V_PASS;
	p->key.proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->flags |= PACKET_F_V6;
	p->l4_off = p->l3_off + sizeof(*ip);
	p->payload = bpf_ntohs(ip->payload_len);
	if (!p->payload && p->segments > 1)
		p->payload = p->bytes - sizeof(*ip);
	if (p->payload + sizeof(*ip) > p->bytes)
		return malformed(p);
	if (is_extension(ip->nexthdr)) {
		p->flags |= PACKET_F_OPTIONS;
		if (!deep)
			return V_CONTINUE;
		skip_extensions(data, end, p);
		if (p->flags & (PACKET_F_LATER | PACKET_F_MALFORMED))
			return V_CONTINUE;
	}
	return parse_l4(data + (p->l4_off & 0x1ff), end, p, deep);
}

/* parse_l3 fills p from what follows the Ethernet header(s); ethertype is the inner one.
 * l3_off, bytes and segments are set. Unless deep is set, a packet that is not plain is only
 * recognized as such. V_PASS: not ours to judge. */
static __always_inline int parse_l3(void *data, void *end, __be16 ethertype, struct packet *p,
				    int deep)
{
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_v4(data, end, p, deep);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_v6(data, end, p, deep);
	return V_PASS;
}

/* plain packets are served by the entry program when their flow is established: TCP or UDP,
 * with nothing unusual in the headers. */
static __always_inline int plain(const struct packet *p)
{
	return p->kind == KIND_FLOW && !(p->flags & ~PACKET_F_V6) && p->key.proto != IPPROTO_SCTP;
}

static __always_inline int same_family(const struct packet *p, const struct flow *f)
{
	return (!(p->flags & PACKET_F_V6)) == is_v4(&f->new_daddr);
}
