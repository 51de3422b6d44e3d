// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* How many new flows a service takes, and what happens beyond that: a client's stack repeats a
 * SYN or an INIT that was lost, after a second (RFC 6298, 2; RFC 9260, 15); who floods with
 * forged sources never says the same again. So beyond the rate a first packet is only noted, and
 * let in when it is repeated. */
#pragma once

#include "select.h"

/* Times are counted in eighths of a second. */
#define MARK_UNITS 8
#define MARK_MIN 4   /* sooner is no repetition of a stack */
#define MARK_KEEP 10 /* so long a mark does not give way: the first repetition finds it */
#define MARK_MAX 64
#define MARK_GROUPS 65536

/* taken counts one more flow in the current second and returns how many there were before.
 * Window and count change together, so no flow is counted in the wrong one. */
static __always_inline __u32 taken(struct service_work *w, __u32 now)
{
	__u32 window = now / (cfg_hz ? cfg_hz : 250), ahead;
	__u64 old = *(volatile __u64 *)&w->taken, fresh = (__u64)window << 32 | 1;

	ahead = (old >> 32) - window;
	/* One ahead: another CPU has seen the next tick already. */
	if (ahead > 1 && __sync_val_compare_and_swap(&w->taken, old, fresh) == old)
		return 0;
	return __sync_fetch_and_add(&w->taken, 1);
}

/* repeated tells whether the packet's tuple came before, long enough ago and not too long; else
 * it notes the tuple in the place of the oldest mark of its group. When a flood is too fast for
 * the table a tuple is noted by luck, but not in vain. Marks are not locked: one that is lost
 * costs a client another second. */
static __noinline int repeated(const struct packet *p, const struct service *svc)
{
	__u64 hash = tuple_hash64(&p->key, svc->seed);
	__u32 group = hash % MARK_GROUPS, tag = hash >> 48, place, i, mark, age;
	__u32 now = (__u64)p->now * MARK_UNITS / (cfg_hz ? cfg_hz : 250) & 0xffff;
	struct marks *m = bpf_map_lookup_elem(&syn_marks, &group);

	if (!m)
		return 0;
	for (i = 0; i < MARKS_PER_GROUP; i++) {
		mark = m->mark[i];
		age = (now - mark) & 0xffff;
		if (mark >> 16 == tag && age <= MARK_MAX)
			return age >= MARK_MIN;
	}
	place = m->next;
	if (place >= MARKS_PER_GROUP)
		place = 0;
	if (((now - m->mark[place]) & 0xffff) < MARK_KEEP)
		return 0;
	m->mark[place] = tag << 16 | now;
	m->next = place + 1;
	return 0;
}

/* admit counts one more new flow against the service's rate. V_CONTINUE: it may be created. */
static __always_inline int admit(const struct packet *p, const struct service *svc)
{
	struct service_work *w;
	__u32 id = svc->id;

	if (!svc->rate)
		return V_CONTINUE;
	w = bpf_map_lookup_elem(&work, &id);
	if (!w || taken(w, p->now) < svc->rate)
		return V_CONTINUE;
	if (p->key.proto == IPPROTO_UDP || !repeated(p, svc))
		return drop(DROP_FLOOD);
	count(COUNTER_FLOOD_REPEATED);
	return V_CONTINUE;
}
