// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Half-open connections that the other nodes hear of (ENDPOINT_F_EARLY), and those of which they tell:
 * both halves of such a replica are in half_open, with FLOW_F_REPLICA, for as long as any other. */
#pragma once

#include "former.h"

/* tell_half reports a connection that is not established. A flood must not cost what is: when the ring
 * is filling up nothing is said. */
static __noinline int tell_half(const struct packet *p, const struct flow *h, __u32 reason)
{
	__u32 id = h->endpoint;
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &id);

	if (!ep || !(ep->flags & ENDPOINT_F_EARLY))
		return 0;
	if (bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >
	    bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2) {
		count(COUNTER_HALF_UNTOLD);
		return 0;
	}
	return emit(p, &p->key, h, NULL, EVENT(RECORD_UPDATE, reason));
}

/* So often a client that goes on without an answer is told of again: replicas grow old, too. */
#define TELL_SECONDS 4

static __always_inline void tell_again(const struct packet *p, const struct flow *h)
{
	__u32 turn = TELL_SECONDS * (cfg_hz ? cfg_hz : 250);

	if (p->now / turn != h->last_seen / turn)
		tell_half(p, h, RECORD_STATE);
}

union half_word {
	struct flow_word w;
	__u32 u;
};

/* adopt_half makes the half under key this node's, if it is the one that from points to (NULL: any).
 * By compare-and-swap: the place may be another connection's by now. */
static __noinline int adopt_half(const struct flow_key *key, const struct flow_key *from)
{
	struct flow *h = half_lookup(key);
	union half_word old, new;

	if (!h || (from && !mirrors(from, h)))
		return 0;
	old.u = *(volatile __u32 *)&h->state;
	if (!(old.w.flags & FLOW_F_REPLICA))
		return 0;
	new = old;
	new.w.flags &= ~FLOW_F_REPLICA;
	new.w.owner_slot = cfg_slot;
	return __sync_val_compare_and_swap((__u32 *)&h->state, old.u, new.u) == old.u;
}

/* adopt_half_open makes the connection of a replica of which a packet has come this node's. h is a
 * copy of the packet's half. */
static __noinline int adopt_half_open(const struct packet *p, struct flow *h)
{
	struct flow_key okey;

	h->flags &= ~FLOW_F_REPLICA;
	h->owner_slot = cfg_slot;
	if (!adopt_half(&p->key, NULL))
		return 0;
	other_key(&okey, &p->key, h);
	if (!one_half(h))
		adopt_half(&okey, &p->key);
	count(COUNTER_ADOPTED);
	return tell_half(p, h, RECORD_ADOPT);
}

/* same_way tells whether two halves of one key do the same to its packets. */
static __always_inline int same_way(const struct flow *a, const struct flow *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4]));
}

/* learn_half takes over what has been told of a half that is there: that its endpoint has accepted,
 * when its last packet was, and whose a replica is. */
static __noinline int learn_half(const struct flow_key *key, const struct flow *told)
{
	__u32 way;
	struct half_bucket *b = half_find(key, &way);
	union half_word old, new;
	struct flow *h;

	if (!b)
		return 0;
	h = &b->slot[way].f;
	old.u = *(volatile __u32 *)&h->state;
	new = old;
	if (told->state == FLOW_SYNACK)
		new.w.state = FLOW_SYNACK;
	if (old.w.flags & FLOW_F_REPLICA)
		new.w.owner_slot = told->owner_slot;
	if (new.u != old.u)
		__sync_val_compare_and_swap((__u32 *)&h->state, old.u, new.u);
	if (new.w.state == FLOW_SYNACK)
		half_use(b, way, 1);
	if ((__s32)(told->last_seen - h->last_seen) > 0)
		h->last_seen = told->last_seen;
	return 1;
}

/* take_in makes both halves of what has been told of, unless the tuples are those of a connection
 * that is established here, or of another one that this node is opening itself. The order is claim's. */
static __always_inline int take_in(struct arrival *a)
{
	int two = !one_half(&a->forward);
	struct flow *here, *there = NULL;
	struct flow_key okey;
	int known;

	other_key(&okey, &a->key, &a->forward);
	if (bpf_map_lookup_elem(&flows, &a->key) || (two && bpf_map_lookup_elem(&flows, &okey)))
		return 0;
	here = half_lookup(&a->key);
	if (two)
		there = half_lookup(&okey);
	known = here && same_way(here, &a->forward);
	if (here && !known && !(here->flags & FLOW_F_REPLICA))
		return 0;
	if (there && !mirrors(&a->key, there) && !(there->flags & FLOW_F_REPLICA))
		return 0;
	if (two && (!there || !mirrors(&a->key, there)) && half_insert(&okey, &a->reply, !there))
		return 0;
	if (!known && half_insert(&a->key, &a->forward, !here)) {
		if (!there)
			half_delete(&okey);
		return 0;
	}
	if (two && bpf_map_lookup_elem(&flows, &okey)) {
		half_delete(&okey);
		half_delete(&a->key);
		return 0;
	}
	if (!known && a->forward.state != FLOW_SYNACK)
		return 1;
	learn_half(&a->key, &a->forward);
	if (two)
		learn_half(&okey, &a->reply);
	return 1;
}

/* arrive takes in the arrival at a number; negative: there are no more. A global function, so that the
 * verifier follows it once and not for each number. */
__attribute__((noinline)) int arrive(__u32 at)
{
	struct arrival *a = bpf_map_lookup_elem(&arrivals, &at);

	if (!a || !a->wanted)
		return -1;
	a->taken = take_in(a);
	return 0;
}
