// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What is counted of flows: traffic by endpoint, and how many connections there are. */
#pragma once

#include "half.h"

/* touch stamps and counts one more packet of f, and of its endpoint. */
static __always_inline void touch(struct flow *f, const struct packet *p)
{
	__u32 bytes = f->bytes_lo + p->bytes, packets = f->packets_lo + p->segments;
	__u32 index = f->endpoint;
	struct endpoint_stats *s = bpf_map_lookup_elem(&traffic, &index);

	f->last_seen = p->now;
	if (bytes < p->bytes)
		f->bytes_hi++;
	if (packets < p->segments)
		f->packets_hi++;
	f->bytes_lo = bytes;
	f->packets_lo = packets;
	if (!s)
		return;
	if (f->flags & FLOW_F_REPLY) {
		s->reply_packets += p->segments;
		s->reply_bytes += p->bytes;
	} else {
		s->forward_packets += p->segments;
		s->forward_bytes += p->bytes;
	}
}

/* half_touch stamps and counts the packet in half_open, if what it has been rewritten by is a copy
 * from there, which is all that touch has seen. Should the place be another's by now, that counts one
 * packet too many. */
static __noinline int half_touch(const struct packet *p, const struct flow *by)
{
	struct binding *b = same_binding();
	struct flow *f;

	if (!b || by != &b->v || !b->copied)
		return 0;
	f = half_lookup(&p->key);
	if (!f)
		return 0;
	f->last_seen = p->now;
	f->bytes_lo += p->bytes;
	f->packets_lo += p->segments;
	if (f->bytes_lo < p->bytes)
		f->bytes_hi++;
	if (f->packets_lo < p->segments)
		f->packets_hi++;
	return 0;
}

/* add_active changes the number of connections under index (0: all in the flow table). */
static __always_inline void add_active(__u32 index, __s64 change)
{
	__u64 *n = bpf_map_lookup_elem(&active, &index);

	if (n)
		__sync_fetch_and_add(n, change);
}

static __always_inline __u64 get_active(__u32 index)
{
	__u64 *n = bpf_map_lookup_elem(&active, &index);

	/* Until a drift is mended, less than none must not look like a full table. */
	return n && (__s64)*n > 0 ? *n : 0;
}

/* opened counts a connection that has just been established. */
static __always_inline void opened(const struct flow *f)
{
	__u32 index = f->endpoint;
	struct endpoint_stats *s = bpf_map_lookup_elem(&traffic, &index);

	if (index)
		add_active(index, 1);
	if (s)
		s->new_flows++;
}
