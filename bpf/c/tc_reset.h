// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The answer to a SYN that nobody wants: a reset, built in the place of the SYN. */
#pragma once

#include "tc_forward.h"

struct reset_headers {
	struct iphdr ip;
	struct tcphdr tcp;
};

_Static_assert(sizeof(struct reset_headers) == 40, "reset_headers");

/* is_partial tells whether the checksum field holds the pseudo header's sum only, to be
 * completed on transmission. The packet does not say so, but the checksum helper leaves the
 * field alone in exactly that case. */
static __always_inline int is_partial(struct __sk_buff *skb, __u32 off)
{
	__u16 before = 0, after = 0;

	bpf_skb_load_bytes(skb, off, &before, sizeof(before));
	bpf_l4_csum_replace(skb, off, 0, 1, 2);
	bpf_skb_load_bytes(skb, off, &after, sizeof(after));
	bpf_l4_csum_replace(skb, off, 1, 0, 2); /* a sum over the whole packet, if there is one, fits again */
	return before == after;
}

/* Sequence numbers as RFC 9293, 3.10.7.1 asks of a reset from the CLOSED state. */
static __always_inline void reset_numbers(struct tcphdr *to, const struct tcphdr *syn, __u32 payload)
{
	to->rst = 1;
	if (syn->ack) {
		to->seq = syn->ack_seq;
		return;
	}
	to->ack = 1;
	to->ack_seq = bpf_htonl(bpf_ntohl(syn->seq) + payload + 1);
}

static __noinline int tc_refuse(struct __sk_buff *skb, const struct packet *p)
{
	struct reset_headers in = {}, out = {};
	__u32 check_off = ETH_HLEN + sizeof(in.ip) + offsetof(struct tcphdr, check), pseudo;
	__u8 mac[2 * ETH_ALEN], swapped[2 * ETH_ALEN];
	int payload;

	/* With IP options the headers do not lie where a partial checksum expects them. */
	if (p->flags & PACKET_F_V6 || p->key.proto != IPPROTO_TCP || p->l4_off != ETH_HLEN + sizeof(in.ip) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &in, sizeof(in)) ||
	    bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		goto bad;
	payload = bpf_ntohs(in.ip.tot_len) - (int)sizeof(in.ip) - in.tcp.doff * 4;
	if (payload < 0)
		goto bad;
	out.ip.version = 4;
	out.ip.ihl = 5;
	out.ip.tot_len = bpf_htons(sizeof(out));
	out.ip.frag_off = bpf_htons(0x4000);
	out.ip.ttl = 64;
	out.ip.protocol = IPPROTO_TCP;
	out.ip.saddr = in.ip.daddr;
	out.ip.daddr = in.ip.saddr;
	out.ip.check = ~fold(sum_words(&out.ip, 10));
	out.tcp.source = in.tcp.dest;
	out.tcp.dest = in.tcp.source;
	out.tcp.doff = 5;
	reset_numbers(&out.tcp, &in.tcp, payload);
	pseudo = sum_words(&out.ip.saddr, 4) + bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(out.tcp));
	if (is_partial(skb, check_off))
		out.tcp.check = fold(pseudo);
	else
		out.tcp.check = ~fold((__u64)pseudo + sum_words(&out.tcp, 10));
	__builtin_memcpy(swapped, mac + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(swapped + ETH_ALEN, mac, ETH_ALEN);
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(out), 0) ||
	    bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &out, sizeof(out), BPF_F_RECOMPUTE_CSUM))
		goto bad;
	count(COUNTER_REFUSED);
	return bpf_redirect(skb->ifindex, 0);
bad:
	count(DROP_NO_SERVICE);
	return TC_ACT_SHOT;
}
