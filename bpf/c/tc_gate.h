// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Whether the host may say that a VIP is here. It answers for the addresses it has, and goes on to do so
 * when the process that gave it the VIP is stopped, or cut off from a cluster that has given the VIP to
 * another node meanwhile. So who asks for a VIP does not get through to it unless this node holds the
 * VIP and its lease is valid. Packets to a VIP are forwarded either way. */
#pragma once

#include "tc_forward.h"

#define ARP_REQUEST 1
#define ICMP6_SOLICITATION 135

/* ARP for IPv4 over Ethernet (RFC 826). */
struct arp {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 op;
	__u8 sender_mac[6], sender[4], target_mac[6], target[4];
} __attribute__((packed));

_Static_assert(sizeof(struct arp) == 28, "arp");

/* may_claim tells whether the host may answer for an address. An address without a lease is not the
 * cluster's. */
static __always_inline int may_claim(const struct addr *a)
{
	struct lease *l = bpf_map_lookup_elem(&leases, a);
	struct lease_term *term;

	if (!l)
		return TC_ACT_UNSPEC;
	if (!(l->flags & LEASE_F_HELD))
		return tc_drop(DROP_NOT_HELD);
	if (!(l->flags & LEASE_F_BOUND))
		return TC_ACT_UNSPEC;
	term = bpf_map_lookup_elem(&terms, (const void *)&zero_key);
	if (term && bpf_ktime_get_boot_ns() < *(volatile __u64 *)&term->until)
		return TC_ACT_UNSPEC;
	return tc_drop(DROP_NO_LEASE);
}

/* gate_arp looks at requests, also those of a sender that has no address yet (RFC 5227) and those by
 * which another announces the VIP: a host that has the address answers them, too. Replies are answered by
 * nobody, and from those of the VIP's holder this machine learns where the VIP has gone. */
static __always_inline int gate_arp(struct __sk_buff *skb, __u32 off)
{
	struct addr target;
	struct arp a;
	__be32 v4;

	if (bpf_skb_load_bytes(skb, off, &a, sizeof(a)) || a.op != bpf_htons(ARP_REQUEST) ||
	    a.protocol != bpf_htons(ETH_P_IP) || a.hardware_len != ETH_ALEN || a.protocol_len != 4)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(&v4, a.target, sizeof(v4));
	map_v4(&target, v4);
	return may_claim(&target);
}

static __always_inline int is_solicitation(const struct packet *p)
{
	return p->kind == KIND_ICMP && p->flags & PACKET_F_V6 && p->icmp_type == ICMP6_SOLICITATION &&
	       p->key.proto == IPPROTO_ICMPV6 && !(p->flags & PACKET_F_LATER);
}

/* gate_solicitation looks at neighbour solicitations (RFC 4861, 4.3), also those of duplicate address
 * detection, which come from no address. */
static __always_inline int gate_solicitation(struct __sk_buff *skb, const struct packet *p)
{
	struct addr target;

	/* Behind type, code, checksum and four reserved bytes. */
	if (bpf_skb_load_bytes(skb, (p->l4_off & 0x1ff) + 8, &target, sizeof(target)))
		return TC_ACT_UNSPEC;
	return may_claim(&target);
}

static __always_inline int gate(struct __sk_buff *skb)
{
	__u32 off = ETH_HLEN - sizeof(__be16);
	struct packet p = {};
	__be16 type;

	if (bpf_skb_load_bytes(skb, off, &type, sizeof(type)))
		return TC_ACT_UNSPEC;
	if (type == bpf_htons(ETH_P_8021Q)) { /* the inner of two tags, or one that the kernel has not seen */
		off += VLAN_HLEN;
		if (bpf_skb_load_bytes(skb, off, &type, sizeof(type)))
			return TC_ACT_UNSPEC;
	}
	if (type == bpf_htons(ETH_P_ARP))
		return gate_arp(skb, off + sizeof(type));
	if (type != bpf_htons(ETH_P_IPV6) || tc_parse_any(skb, &p, HEADERS_ALL, 1) >= 0 || !is_solicitation(&p))
		return TC_ACT_UNSPEC;
	return gate_solicitation(skb, &p);
}
