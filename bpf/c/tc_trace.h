// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The packet tracer on the TC hook. */
#pragma once

#include "tc_forward.h"

/* trace_bytes copies the beginning of the frame. */
static __always_inline __u32 trace_bytes(struct __sk_buff *skb, __u8 *to)
{
	__u32 length = skb->len;

	if (length < ETH_HLEN)
		return 0;
	if (length > TRACE_BYTES)
		length = TRACE_BYTES;
	return bpf_skb_load_bytes(skb, 0, to, length) ? 0 : length;
}

/* trace_match says what of the filter is satisfied before anything was decided; no bit set:
 * nothing that happens later can change that. */
static __always_inline __u32 trace_match(const struct packet *p)
{
	__u32 matched = match_key(&p->key);
	struct flow *f;

	/* What a fragment or an ICMP error is about shows later. */
	if (!plain(p))
		return matched | match_service(0) | TRACE_M_OPEN;
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (!f)
		f = half_lookup(&p->key);
	if (!f)
		return matched ? matched | match_service(0) : 0;
	matched |= match_flow(f);
	return (matched & TRACE_M_ALL) == TRACE_M_ALL ? matched : 0;
}

/* trace_begin starts to gather steps for a packet that the filter may match. */
static __always_inline int trace_begin(struct __sk_buff *skb, const struct packet *p)
{
	struct trace *t = trace_of_cpu();
	__u32 matched;

	if (!t)
		return 0;
	t->live = 0; /* a packet before may have left without a word */
	matched = trace_match(p);
	if (!matched)
		return 0;
	t->live = 1;
	t->matched = matched;
	t->time_ns = bpf_ktime_get_ns();
	t->cpu = bpf_get_smp_processor_id();
	t->ifindex = skb->ifindex;
	t->out_ifindex = 0;
	t->length = skb->len;
	t->count = 0;
	t->after_len = 0;
	t->sent = 0;
	t->vlan_tci = skb->vlan_present ? skb->vlan_tci | 1 << 16 : 0;
	t->packet = *p;
	__builtin_memset(&t->flow, 0, sizeof(t->flow));
	t->before_len = trace_bytes(skb, t->before);
	return 1;
}

/* trace_end hands over what was gathered. */
static __noinline int trace_end(struct __sk_buff *skb, int action)
{
	struct trace *t = trace_of_cpu();
	struct next_hop *hop;

	if (!t || !t->live)
		return 0;
	t->live = 0;
	if ((t->matched & TRACE_M_ALL) != TRACE_M_ALL)
		return 0;
	t->action = action;
	if (action == TC_ACT_REDIRECT) {
		t->sent = skb->len;
		t->after_len = trace_bytes(skb, t->after);
		hop = bpf_map_lookup_elem(&next_hops, &t->flow.new_daddr);
		if (hop)
			t->out_ifindex = hop->ifindex;
	}
	t->sequence++;
	if (bpf_ringbuf_output(&traces, t, sizeof(*t), 0))
		t->lost++;
	return 0;
}

/* tc_done is the way out of every program behind the entry program. */
static __always_inline int tc_done(struct __sk_buff *skb, int action)
{
	if (cfg_trace)
		trace_end(skb, action);
	return action;
}
