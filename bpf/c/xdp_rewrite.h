// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Rewriting within one IP family for the XDP hook. A frame there has whole checksums, which are
 * changed by RFC 1624. Everything is looked at before anything is changed: what does not fit is
 * left to TC as it came. */
#pragma once

#include "tc_rewrite.h"

/* A UDP checksum of zero means that there is none; one that comes out as zero is sent as its
 * other form (RFC 768). */
static __always_inline void xdp_fix_udp(struct udphdr *udp, __u32 diff)
{
	__u16 check = udp->check;

	if (!check)
		return;
	check = csum_add(check, diff);
	udp->check = check ? check : 0xffff;
}

/* xdp_fix_l4 changes ports and checksum; diff is that of the addresses. */
static __always_inline int xdp_fix_l4(void *l4, void *end, const struct packet *p,
				      const struct flow *f, __u32 diff)
{
	__u32 ports = port_pair(f->new_sport, f->new_dport);
	struct tcphdr *tcp = l4;

	diff = fold32((__u64)diff + ports + (__u32)~port_pair(p->key.sport, p->key.dport));
	if (p->key.proto == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return -1;
		tcp->check = csum_add(tcp->check, diff);
	} else {
		if (l4 + sizeof(struct udphdr) > end)
			return -1;
		xdp_fix_udp(l4, diff);
	}
	*(__u32 *)l4 = ports;
	return 0;
}

static __always_inline void xdp_set_macs(struct ethhdr *eth, const struct next_hop *hop)
{
	__builtin_memcpy(eth->h_dest, hop->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, hop->smac, ETH_ALEN);
}

/* xdp_rewrite changes addresses, ports, TTL and checksums of a plain packet. The L4 header is
 * the last one, so that when it is there all are, and nothing has been changed when it is not. */
static __always_inline int xdp_rewrite(struct xdp_md *ctx, const struct packet *p,
				       const struct flow *f, const struct next_hop *hop)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int v6 = p->flags & PACKET_F_V6;
	__u32 l3 = p->l3_off & 0x1f, diff = addr_diff(&p->key, f, v6);
	void *ip = data + l3;

	if (data + ETH_HLEN > end)
		return -1;
	if (v6) {
		if (ip + sizeof(struct ipv6hdr) > end ||
		    xdp_fix_l4(ip + sizeof(struct ipv6hdr), end, p, f, diff))
			return -1;
		rewrite_v6(ip, end, p, f);
	} else {
		if (ip + sizeof(struct iphdr) > end ||
		    xdp_fix_l4(ip + sizeof(struct iphdr), end, p, f, diff))
			return -1;
		rewrite_v4(ip, end, p, f, diff);
	}
	xdp_set_macs(data, hop);
	return 0;
}

/* xdp_pass_on is all the rewriting of DSR by L2. */
static __always_inline int xdp_pass_on(struct xdp_md *ctx, const struct packet *p,
				       const struct next_hop *hop)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + ETH_HLEN > end || pass_on(data + (p->l3_off & 0x1f), end, p))
		return -1;
	xdp_set_macs(data, hop);
	return 0;
}
