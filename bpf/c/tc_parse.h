// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* From an skb to struct packet. */
#pragma once

#include "parse.h"

/* What the entry program wants to see: the headers of the common packet. The others look
 * further, for extension headers and the packet inside an ICMP error. */
#define HEADERS_COMMON (ETH_HLEN + 60 + sizeof(struct tcphdr))
#define HEADERS_ALL 512

/* tc_enough is how many of the first want bytes the parser really needs: no more than the headers of a
 * packet without options. What a socket of this machine sends has its headers in the linear part and
 * nothing else. To pull payload behind them costs a copy of the head for each packet, leaves the rest
 * misaligned, and the receiver cannot join the packets any more. */
static __always_inline __u32 tc_enough(void *data, void *end, __u32 want)
{
	struct ethhdr *eth = data;

	if (want != HEADERS_COMMON || (void *)(eth + 1) > end)
		return want;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr);
	return want;
}

/* tc_segments is how many segments of the given size a bundle has of which the driver did not
 * say so (virtio); a usual TCP header has 20 to 32 bytes. */
static __always_inline __u32 tc_segments(const struct packet *p, __u32 size)
{
	__u32 header = p->key.proto == IPPROTO_TCP ? 32 : sizeof(struct udphdr);

	return p->payload > header + size ? (p->payload - header + size - 1) / size : 1;
}

/* tc_parse_any fills p, looking at no more than the first want bytes. V_PASS: not IP. */
static __always_inline int tc_parse_any(struct __sk_buff *skb, struct packet *p, __u32 want, int deep)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth;
	int verdict;
	__be16 type;
	__u64 now;

	if (data + tc_enough(data, end, want) > end && end - data < skb->len) {
		/* Headers may lie in fragments. A short packet that does not is left as it is. */
		if (bpf_skb_pull_data(skb, skb->len < want ? skb->len : want))
			return V_PASS;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	eth = data;
	if ((void *)(eth + 1) > end)
		return V_PASS;
	type = eth->h_proto;
	p->l3_off = ETH_HLEN;
	/* The outermost tag has been taken out by the kernel and travels beside the packet. */
	if (type == bpf_htons(ETH_P_8021Q)) {
		if ((void *)(eth + 1) + VLAN_HLEN > end)
			return V_PASS;
		type = *(__be16 *)((void *)(eth + 1) + 2);
		p->l3_off = ETH_HLEN + VLAN_HLEN;
	}
	now = bpf_jiffies64();
	p->now = now;
	p->created = now >> CREATED_SHIFT;
	p->bytes = skb->len - p->l3_off;
	p->segments = skb->gso_segs ? skb->gso_segs : 1;
	verdict = parse_l3(data, end, type, p, deep);
	if (!skb->gso_segs && skb->gso_size)
		p->segments = tc_segments(p, skb->gso_size);
	return verdict;
}

/* tc_parse is that for frames that are for us. V_PASS: not ours. */
static __always_inline int tc_parse(struct __sk_buff *skb, struct packet *p, __u32 want, int deep)
{
	if (skb->pkt_type != PACKET_HOST)
		return V_PASS;
	return tc_parse_any(skb, p, want, deep);
}
