// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Sending from the XDP hook: by the cached next hop, or not at all. */
#pragma once

#include "tc_forward.h"
#include "xdp_parse.h"
#include "xdp_rewrite.h"

/* xdp_leave leaves a packet of ours, unchanged, to the TC program of the same interface. */
static __always_inline int xdp_leave(void)
{
	count(COUNTER_XDP_PASS);
	return XDP_PASS;
}

/* xdp_leave_unseen does the same with a packet of which nothing was looked up: it is one of ours, as
 * far as can be told at once, when it is for a VIP. */
static __always_inline int xdp_leave_unseen(const struct packet *p)
{
	if (bpf_map_lookup_elem(&vips, &p->key.daddr))
		count(COUNTER_XDP_PASS);
	return XDP_PASS;
}

/* takes tells whether an interface can send the frame. What it cannot would be lost after the
 * program has ended, where nothing counts it. */
static __always_inline int takes(const struct station *out, const struct next_hop *hop,
				 struct xdp_md *ctx, const struct packet *p)
{
	__u32 first = ctx->data_end - ctx->data;

	if (!(out->flags & STATION_F_XMIT) || p->bytes > out->mtu || p->bytes > hop->mtu)
		return 0;
	return out->flags & STATION_F_XMIT_FRAGS || first == p->bytes + p->l3_off;
}

/* xdp_forward rewrites by f and sends, or leaves the packet to TC, which knows more ways. */
static __always_inline int xdp_forward(struct xdp_md *ctx, const struct packet *p, struct flow *f)
{
	__u32 generation, ifindex;
	struct next_hop *hop = next_hop_of(p, &f->new_daddr, &generation);
	const struct station *out;

	if (!hop)
		return xdp_leave();
	ifindex = hop->ifindex;
	out = get_station(ifindex);
	if (!out || !takes(out, hop, ctx, p))
		return xdp_leave();
	if (f->mode == MODE_DSR ? xdp_pass_on(ctx, p, hop) : xdp_rewrite(ctx, p, f, hop))
		return xdp_leave();
	touch(f, p);
	count(COUNTER_XDP_FORWARD);
	if (ifindex == ctx->ingress_ifindex && out->flags & STATION_F_TX)
		return XDP_TX;
	return bpf_redirect(ifindex, 0);
}
