// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The packet tracer: what was decided about a packet, step by step. Only a set of programs
 * loaded with cfg_trace keeps any of this: in the others the verifier finds the code dead and
 * the kernel takes it out. The steps of one packet are gathered in a buffer of its CPU and
 * leave in one piece, so that packets do not mix and one that is lost is lost whole. */
#pragma once

#include "trace_defs.h"

const volatile __u8 cfg_trace = 0;
/* What is traced: packets of this client, of this service; zero is any. */
const volatile struct addr cfg_trace_client = {};
const volatile struct addr cfg_trace_mask = {};
const volatile __be16 cfg_trace_port = 0;
const volatile __u16 cfg_trace_service = 0;

/* A key that takes no stack, of which deep calls have little. */
const volatile __u32 zero_key = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace);
} trace_buffer SEC(".maps");

/* Sized by user space when it traces. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} traces SEC(".maps");

static __always_inline struct trace *trace_of_cpu(void)
{
	return bpf_map_lookup_elem(&trace_buffer, (const void *)&zero_key);
}

static __always_inline void add_step(struct trace *t, __u32 kind, __u32 extra, __u32 number)
{
	__u32 n = t->count;

	t->count = n + 1;
	if (n >= TRACE_STEPS)
		return;
	n &= TRACE_STEPS - 1;
	t->steps[n].kind = kind;
	t->steps[n].extra = extra;
	t->steps[n].number = number;
}

/* step notes a decision about the packet at hand, when that is traced. */
static __always_inline void step(__u32 kind, __u32 extra, __u32 number)
{
	struct trace *t;

	if (!cfg_trace)
		return;
	t = trace_of_cpu();
	if (t && t->live)
		add_step(t, kind, extra, number);
}

static __always_inline int trace_client(const struct addr *a, __be16 port)
{
	return (a->d[0] & cfg_trace_mask.d[0]) == cfg_trace_client.d[0] &&
	       (a->d[1] & cfg_trace_mask.d[1]) == cfg_trace_client.d[1] &&
	       (!cfg_trace_port || cfg_trace_port == port);
}

/* What of the filter a tuple satisfies: it does not say which end is the client. */
static __always_inline __u32 match_key(const struct flow_key *k)
{
	if (trace_client(&k->saddr, k->sport) || trace_client(&k->daddr, k->dport))
		return TRACE_M_CLIENT;
	return 0;
}

static __always_inline __u32 match_service(__u32 id)
{
	return !cfg_trace_service || cfg_trace_service == id ? TRACE_M_SERVICE : 0;
}

static __always_inline __u32 match_flow(const struct flow *f)
{
	__u32 matched = match_service(f->service);

	if (trace_client(&f->new_saddr, f->new_sport) || trace_client(&f->new_daddr, f->new_dport))
		matched |= TRACE_M_CLIENT;
	return matched;
}

/* note_flow keeps the entry by which the packet is treated. */
static __always_inline void note_flow(__u32 kind, const struct flow *f)
{
	struct trace *t;

	if (!cfg_trace)
		return;
	t = trace_of_cpu();
	if (!t || !t->live)
		return;
	t->flow = *f;
	t->matched |= match_flow(f);
	add_step(t, kind, f->endpoint, f->state | f->flags << 8 | f->owner_slot << 16 | f->mode << 24);
}

static __always_inline void note_service(const struct service *svc)
{
	struct trace *t;

	if (!cfg_trace)
		return;
	t = trace_of_cpu();
	if (!t || !t->live)
		return;
	t->matched |= match_service(svc->id);
	add_step(t, STEP_SERVICE, svc->id, svc->mode | svc->algorithm << 8 | svc->table_len << 16);
}

/* note_packet keeps what the parser made of the packet. */
static __always_inline void note_packet(const struct packet *p)
{
	struct trace *t;

	if (!cfg_trace)
		return;
	t = trace_of_cpu();
	if (t && t->live)
		t->packet = *p;
}
