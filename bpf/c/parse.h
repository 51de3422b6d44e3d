// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* From bytes to struct packet. */
#pragma once

#include "maps.h"

static __always_inline void map_v4(struct addr *a, __be32 v4)
{
	a->d[0] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

/* parse_l4 reads ports and TCP flags. V_PASS: too short to be anything. */
static __always_inline int parse_l4(void *l4, void *end, struct packet *p)
{
	if (p->key.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end)
			return V_PASS;
		p->key.sport = tcp->source;
		p->key.dport = tcp->dest;
		p->tcp_flags = ((__u8 *)tcp)[13];
		return V_CONTINUE;
	}
	if (p->key.proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end)
			return V_PASS;
		p->key.sport = udp->source;
		p->key.dport = udp->dest;
		return V_CONTINUE;
	}
	if (p->key.proto == IPPROTO_ICMP) {
		if (l4 + 8 > end)
			return V_PASS;
		p->icmp_type = *(__u8 *)l4;
		p->kind = KIND_ICMP;
		return V_CONTINUE;
	}
	p->kind = KIND_OTHER;
	return V_CONTINUE;
}

/* parse_v4 fills p from an Ethernet frame that carries IPv4. V_PASS: not ours to judge. */
static __always_inline int parse_v4(void *data, void *end, struct packet *p)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 header;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return V_PASS;
	if (ip->version != 4 || ip->ihl < 5)
		return V_PASS;
	header = ip->ihl * 4;
	p->saddr4 = ip->saddr;
	p->daddr4 = ip->daddr;
	map_v4(&p->key.saddr, ip->saddr);
	map_v4(&p->key.daddr, ip->daddr);
	p->key.proto = ip->protocol;
	p->ttl = ip->ttl;
	p->l4_off = ETH_HLEN + header;
	if (ip->frag_off & bpf_htons(0x3fff)) {
		p->kind = KIND_FRAGMENT;
		return V_CONTINUE;
	}
	return parse_l4((void *)ip + header, end, p);
}
