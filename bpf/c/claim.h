// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Reply tuples: unique in the cluster at all times, because ports are partitioned by node. */
#pragma once

#include "flow.h"

/* A reply tuple is claimed by its entry in half_open; only then are the established flows
 * looked at. In this order a promotion on another CPU cannot slip between. Returns NULL and
 * *err 0: claimed; NULL and *err: taken or failed; else the closed flow that holds it. */
static __always_inline struct flow *claim(const struct flow_key *rkey, const struct flow *rev,
					  long *err)
{
	struct flow *held;

	*err = half_insert(rkey, rev, 1);
	if (*err)
		return NULL;
	if (cfg_former)
		bring_reply();
	held = bpf_map_lookup_elem(&flows, rkey);
	if (!held)
		return NULL;
	half_delete(rkey);
	*err = -EEXIST;
	return held->state == FLOW_CLOSED ? held : NULL;
}

/* take_over gives the tuple of a closed flow to rev. */
static __noinline int take_over(const struct packet *p, const struct flow_key *rkey,
				const struct flow *rev)
{
	struct flow *held = bpf_map_lookup_elem(&flows, rkey);

	if (held) {
		if (held->state != FLOW_CLOSED)
			return -EEXIST;
		remove_flow(p, rkey, held);
		count(COUNTER_TAKEN_OVER);
	}
	return half_insert(rkey, rev, 1);
}

/* claim_snat finds a source port of this node's range that is free towards the endpoint of the
 * binding at hand. A closed flow's port is taken only when no free one was found, so that a
 * connection that is just ending can still exchange its last segments.
 *
 * It is a global function, which takes nothing but a number, so that the verifier follows its
 * loop once: as a static one the verifier of 6.1 followed it in every state of its caller, and
 * came within a fifth of its limit. */
__attribute__((noinline)) int claim_snat(__u32 hash)
{
	__u32 base = SNAT_PORT_MIN + (cfg_slot & 7) * SNAT_PORTS_PER_SLOT;
	struct packet *p = current_packet();
	struct binding *b = same_binding();
	__be16 closed = 0;
	struct flow *held;
	long err;
	__u32 i;

	if (!p || !b)
		return -EEXIST;
	for (i = 0; i < SNAT_PROBES; i++) {
		b->rkey.dport = bpf_htons(base + (hash + i) % SNAT_PORTS_PER_SLOT);
		held = claim(&b->rkey, &b->v, &err);
		if (!err) {
			step(STEP_PORT, bpf_ntohs(b->rkey.dport), i);
			return 0;
		}
		if (held && !closed)
			closed = b->rkey.dport;
	}
	if (!closed)
		return -EEXIST;
	b->rkey.dport = closed;
	step(STEP_PORT, bpf_ntohs(closed), SNAT_PROBES);
	return take_over(p, &b->rkey, &b->v);
}

/* claim_dnat needs the one tuple {endpoint, client}. */
static __noinline int claim_dnat(const struct packet *p, const struct flow_key *rkey,
				 const struct flow *rev)
{
	struct flow *held;
	long err;

	held = claim(rkey, rev, &err);
	if (!err)
		return 0;
	if (held)
		return take_over(p, rkey, rev);
	/* Left of an earlier packet of the same connection, whose entry gave way? */
	held = half_lookup(rkey);
	if (!held || !mirrors(&p->key, held))
		return -EEXIST;
	return half_insert(rkey, rev, 0);
}
