// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Records for user space: what replication and the counters are fed from. */
#pragma once

#include "account.h"

static __always_inline __u32 jiffies_to_ms(__u64 j)
{
	__u64 ms = j * 1000 / (cfg_hz ? cfg_hz : 250);

	return ms > 0xffffffffULL ? 0xffffffff : ms;
}

static __always_inline __u64 flow_bytes(const struct flow *f)
{
	return (__u64)f->bytes_hi << 32 | f->bytes_lo;
}

static __always_inline __u64 flow_packets(const struct flow *f)
{
	return (__u64)f->packets_hi << 32 | f->packets_lo;
}

/* The tuple in which the other half of a connection arrives. The formula is its own
 * inverse: it leads from the forward half to the reply half and back. */
static __always_inline void other_key(struct flow_key *to, const struct flow_key *key,
				      const struct flow *f)
{
	__builtin_memset(to, 0, sizeof(*to));
	to->saddr = f->new_daddr;
	to->daddr = f->new_saddr;
	to->sport = f->new_dport;
	to->dport = f->new_sport;
	to->proto = key->proto;
}

/* In DSR the endpoint answers past us: such a connection has a forward half only. */
static __always_inline int one_half(const struct flow *f)
{
	return f->mode >= MODE_DSR;
}

/* mirrors tells whether other undoes what f does to packets of key. */
static __always_inline int mirrors(const struct flow_key *key, const struct flow *other)
{
	return other->new_daddr.d[0] == key->saddr.d[0] &&
	       other->new_daddr.d[1] == key->saddr.d[1] &&
	       other->new_saddr.d[0] == key->daddr.d[0] &&
	       other->new_saddr.d[1] == key->daddr.d[1] &&
	       other->new_dport == key->sport && other->new_sport == key->dport;
}

/* fill_tuple writes the four addresses, whichever half it is given. */
static __always_inline void fill_tuple(struct flow_record *r, const struct flow_key *key,
				       const struct flow *f)
{
	if (f->flags & FLOW_F_REPLY) {
		r->client = f->new_daddr;
		r->client_port = f->new_dport;
		r->vip = f->new_saddr;
		r->vip_port = f->new_sport;
		r->snat = key->daddr;
		r->snat_port = key->dport;
		r->endpoint = key->saddr;
		r->endpoint_port = key->sport;
		return;
	}
	r->client = key->saddr;
	r->client_port = key->sport;
	r->vip = key->daddr;
	r->vip_port = key->dport;
	r->snat = f->new_saddr;
	r->snat_port = f->new_sport;
	r->endpoint = f->new_daddr;
	r->endpoint_port = f->new_dport;
}

static __always_inline void fill_counters(struct flow_record *r, const struct flow *f,
					  const struct flow *other)
{
	const struct flow *forward = f, *reply = other;

	if (f->flags & FLOW_F_REPLY) {
		forward = other;
		reply = f;
	}
	r->forward_packets = forward ? flow_packets(forward) : 0;
	r->forward_bytes = forward ? flow_bytes(forward) : 0;
	r->reply_packets = reply ? flow_packets(reply) : 0;
	r->reply_bytes = reply ? flow_bytes(reply) : 0;
}

/* other_side turns closing bits into what they are in the other half: own and peer change places. */
static __always_inline __u8 other_side(__u8 flags)
{
	return (flags & FLOW_F_OWN) << 1 | (flags & FLOW_F_PEER) >> 1;
}

/* other_way is other_side with the flags that both halves have alike. */
static __always_inline __u8 other_way(__u8 flags)
{
	return other_side(flags) | (flags & FLOW_F_GUEST);
}

/* The closing bits as the forward half has them. */
static __always_inline __u8 forward_flags(__u8 flags)
{
	return flags & FLOW_F_REPLY ? other_side(flags) : flags & FLOW_F_CLOSING;
}

/* What an emitted record says, packed to keep emit at five arguments. */
#define EVENT(op, reason) ((op) | (reason) << 8)

/* emit reports the connection of f (key: the tuple of that half; other may be missing).
 * The wake-up is adaptive: one forced per record costs 12 us. */
static __noinline int emit(const struct packet *p, const struct flow_key *key,
			   const struct flow *f, const struct flow *other, __u32 event)
{
	struct flow_record *r;

	if (f->flags & FLOW_F_QUIET)
		return 0;
	r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);
	if (!r) {
		count(COUNTER_RING_LOST);
		return 0;
	}
	fill_tuple(r, key, f);
	fill_counters(r, f, other);
	r->service = f->service;
	r->endpoint_id = f->endpoint;
	r->proto = key->proto;
	r->mode = f->mode;
	r->state = f->state;
	r->op = event & 0xff;
	r->reason = event >> 8;
	r->owner_slot = f->owner_slot;
	r->pad = 0; /* every byte is written: the ring is not zeroed */
	r->epoch = 0;
	r->flags = forward_flags(f->flags);
	r->idle_ms = p->now; /* a stamp; the reader of the ring turns it into an age */
	r->age_ms = jiffies_to_ms((__u64)(p->created - f->created) << CREATED_SHIFT);
	bpf_ringbuf_submit(r, 0);
	return 0;
}
