// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Echoes of neighbours: what a node's detector sends to learn whether this node forwards goes back
 * from here, without user space (unaffiliated BFD echo, RFC 9747). It is sent to an address of ours
 * and comes back from it, so that neither side's kernel takes it for a martian. */
#pragma once

#include "tc_answer.h"

/* turn_ip exchanges the addresses and takes one off the hops to live, so that no echo goes round
 * twice. No checksum but that of the IPv4 header changes, and in IPv6 the sum over the whole packet. */
static __always_inline int turn_ip(struct __sk_buff *skb, const struct packet *p)
{
	__u32 ttl = p->l3_off + offsetof(struct iphdr, ttl), saddr = p->l3_off + offsetof(struct iphdr, saddr);
	__u8 addrs[8], turned[8], hops = ECHO_TTL - 1;

	if (p->flags & PACKET_F_V6) {
		saddr = p->l3_off + offsetof(struct ipv6hdr, saddr);
		if (bpf_skb_store_bytes(skb, saddr, &p->key.daddr, sizeof(struct addr), 0) ||
		    bpf_skb_store_bytes(skb, saddr + sizeof(struct addr), &p->key.saddr, sizeof(struct addr), 0))
			return -1;
		tc_sum_changes(skb, LESS_HOP_V6);
		return bpf_skb_store_bytes(skb, p->l3_off + offsetof(struct ipv6hdr, hop_limit), &hops, 1, 0);
	}
	if (bpf_skb_load_bytes(skb, saddr, addrs, sizeof(addrs)))
		return -1;
	__builtin_memcpy(turned, addrs + 4, 4);
	__builtin_memcpy(turned + 4, addrs, 4);
	if (bpf_skb_store_bytes(skb, saddr, turned, sizeof(turned), 0) ||
	    bpf_l3_csum_replace(skb, p->l3_off + offsetof(struct iphdr, check), bpf_htons(ECHO_TTL << 8),
				bpf_htons((ECHO_TTL - 1) << 8), 2))
		return -1;
	return bpf_skb_store_bytes(skb, ttl, &hops, 1, 0);
}

/* tc_echo sends the probe back the way it came; what only looks like one is left to the host. */
static __noinline int tc_echo(struct __sk_buff *skb, const struct packet *p)
{
	__be16 ports[2] = { p->key.dport, p->key.sport };
	__be32 magic = 0;

	if (bpf_skb_load_bytes(skb, p->l4_off + sizeof(struct udphdr), &magic, sizeof(magic)) ||
	    magic != bpf_htonl(ECHO_MAGIC))
		return TC_ACT_UNSPEC;
	if (turn_link(skb) || turn_ip(skb, p) || bpf_skb_store_bytes(skb, p->l4_off, ports, sizeof(ports), 0))
		return tc_drop(DROP_REWRITE);
	count(COUNTER_ECHOED);
	return bpf_redirect(skb->ifindex, 0);
}
