// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* From an XDP frame to struct packet. */
#pragma once

#include "parse.h"
#include "station.h"

/* xdp_length is the length of the frame, of which data to end is only the first part when it
 * came in several buffers. */
static __always_inline __u32 xdp_length(struct xdp_md *ctx)
{
	if (cfg_xdp_frags)
		return bpf_xdp_get_buff_len(ctx);
	return ctx->data_end - ctx->data;
}

/* xdp_parse fills p when the frame is for us and its headers lie in the first buffer. There is
 * no pkt_type here, so the destination is compared with the interface's own address. A tag is
 * in the frame (unless the card takes it out: see ../vlan.go). V_PASS: not for us to judge. */
static __always_inline int xdp_parse(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct station *here = get_station(ctx->ingress_ifindex);
	struct ethhdr *eth = data;
	__be16 type;
	__u64 now;

	if ((void *)(eth + 1) > end || !here || !is_mine(here, eth->h_dest))
		return V_PASS;
	type = eth->h_proto;
	p->l3_off = ETH_HLEN;
	if (type == bpf_htons(ETH_P_8021Q)) {
		if ((void *)(eth + 1) + VLAN_HLEN > end)
			return V_PASS;
		type = *(__be16 *)((void *)(eth + 1) + 2);
		p->l3_off = ETH_HLEN + VLAN_HLEN;
	}
	p->bytes = xdp_length(ctx) - p->l3_off;
	if (cfg_xdp_max && p->bytes > cfg_xdp_max)
		return V_PASS;
	p->segments = 1;
	now = bpf_jiffies64();
	p->now = now;
	p->created = now >> CREATED_SHIFT;
	return parse_l3(data, end, type, p, 0);
}
