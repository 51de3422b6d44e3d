// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The data plane on the XDP hook. It forwards what it can forward by itself and leaves the rest,
 * unchanged, to the TC program on the same interface. Whatever it has noted of such a packet
 * (a new flow, a FIN) TC finds already there, and noting it twice changes nothing. */
#pragma once

#include "tc_trace.h"
#include "sharing.h"
#include "xdp_forward.h"

/* Returns XDP_PASS for what is not ours or not plain. */
SEC("xdp.frags")
int pontoon_xdp(struct xdp_md *ctx)
{
	struct packet p = {}, *current;
	struct flow *f;

	if (xdp_parse(ctx, &p) >= 0)
		return XDP_PASS;
	if (!plain(&p) || p.ttl <= 1)
		return xdp_leave_unseen(&p);
	if (cfg_trace && trace_match(&p)) /* TC tells what becomes of it */
		return XDP_PASS;
	f = bpf_map_lookup_elem(&flows, &p.key);
	if (f && !needs_care(&p, f)) {
		if (!same_family(&p, f) || f->mode == MODE_DSR_TUNNEL)
			return xdp_leave();
		return xdp_forward(ctx, &p, f);
	}
	if (f && f->flags & FLOW_F_DOOMED) /* answered, and counted, by TC */
		return xdp_leave();
	p.missed = !f;
	current = current_packet();
	if (current)
		*current = p;
	bpf_tail_call(ctx, &xdp_tails, TAIL_SLOW);
	return XDP_PASS;
}

/* xdp_conclude does what the core has decided, as far as this hook can. */
static __always_inline int xdp_conclude(struct xdp_md *ctx, const struct packet *p, struct flow *f,
					int verdict)
{
	int action;

	if (f) {
		if (!same_family(p, f) || f->mode == MODE_DSR_TUNNEL)
			return xdp_leave();
		action = xdp_forward(ctx, p, f);
		if (action != XDP_PASS)
			half_touch(p, f);
		return action;
	}
	if (verdict == V_DROP)
		return XDP_DROP;
	return verdict == V_PASS || verdict == V_ECHO ? XDP_PASS : xdp_leave();
}

SEC("xdp.frags")
int pontoon_xdp_slow(struct xdp_md *ctx)
{
	struct packet *p = current_packet();
	struct flow *f;
	int verdict;

	/* A full table is answered, and counted, by TC. */
	if (!p)
		return XDP_PASS;
	if (get_active(0) >= cfg_max_flows)
		return xdp_leave_unseen(p);
	f = find_slow(p, &verdict);
	if (!f && goes_on(p, verdict) && predecessor_on(ctx->ingress_ifindex))
		return xdp_leave(); /* TC brings it there */
	if (!f && may_stray(p, verdict, ctx->ingress_ifindex))
		return xdp_leave(); /* the same */
	if (verdict == V_NEW) {
		bpf_tail_call(ctx, &xdp_tails, TAIL_NEW);
		return XDP_PASS;
	}
	return xdp_conclude(ctx, p, f, verdict);
}

SEC("xdp.frags")
int pontoon_xdp_new(struct xdp_md *ctx)
{
	struct packet *p = current_packet();
	struct flow *f;
	int verdict, action;

	if (!p)
		return XDP_PASS;
	f = find_new(p, &verdict);
	action = xdp_conclude(ctx, p, f, verdict);
	if (f && action == XDP_PASS)
		uncount_made(p, f);
	return action;
}
