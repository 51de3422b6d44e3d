// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* All maps and load-time settings. Every map is pinned by user space under its own name. */
#pragma once

#include "defs.h"

/* Set by user space before the program is loaded. */
const volatile __u8 cfg_slot = 0;
const volatile __u32 cfg_hz = 250;
const volatile __u32 cfg_next_hop_ttl = 1250; /* jiffies */

/* Never read: it mentions the types that no map does, so that bpf2go finds them in the BTF
 * and Go has the same constants. */
const volatile struct vocabulary {
	enum flow_state state;
	enum flow_flag flag;
	enum nat_mode mode;
	enum algorithm algorithm;
	enum record_op op;
	enum record_reason reason;
	enum counter counter;
	struct flow_record record;
} vocabulary = {};

#define SNAT_PORT_MIN 1024
#define SNAT_PORTS_PER_SLOT 8064 /* (65536 - 1024) / 8 slots */
#define SNAT_PROBES 32
#define ENDPOINT_TRIES 4

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct flow);
} half_open SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1048576);
	__type(key, __u32);
	__type(value, __u32);
} selection SEC(".maps");

/* Round-robin position by service id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} rr SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct addr);
	__type(value, __u32);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct addr);
	__type(value, struct next_hop);
} next_hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_MAX);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control_block);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

/* For the clock program only; not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} clocks SEC(".maps");

static __always_inline void count(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &index);

	if (value)
		(*value)++;
}

/* The one way out for a packet that is not passed on. */
static __always_inline int drop(__u32 reason)
{
	count(reason);
	return V_DROP;
}
