// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* All maps and load-time settings. Every map is pinned by user space under its own name. */
#pragma once

#include "counters.h"
#include "record.h"
#include "trace.h"

/* Set by user space before the program is loaded. */
const volatile __u8 cfg_slot = 0;
const volatile __u32 cfg_hz = 250;
const volatile __u32 cfg_next_hop_ttl = 1250; /* jiffies */
const volatile __u32 cfg_max_flows = 65536;   /* connections */
const volatile __u32 cfg_xdp_max = 0;         /* bytes from the IP header on; 0: no limit */
const volatile __u32 cfg_half_buckets = 1;
const volatile __u32 cfg_half_seed = 0;
const volatile __u8 cfg_xdp_frags = 0;        /* frames may come in several buffers */
const volatile __u32 cfg_bring_max = 65536;   /* frames brought to other nodes in a second, on each CPU */
const volatile __u8 cfg_former = 0;           /* flows is filled from former at present */

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
	enum service_flag service_flag;
	enum vip_flag vip_flag;
	enum slots slots;
	enum on_link on_link;
	enum origin_flag origin_flag;
	enum endpoint_flag endpoint_flag;
	enum station_flag station_flag;
	enum lease_flag lease_flag;
	enum tail tail;
	enum find_what find_what;
	enum found_what found_what;
	enum trace_kind trace_kind;
	enum packet_flag packet_flag;
	enum answer answer;
	struct flow_record record;
	struct ending ending;
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

/* What flows takes the place of, while cfg_former is set; else empty. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow);
} former SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 49152);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct half_bucket);
} half_open SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, struct range);
} ranges SEC(".maps");

/* By replicated endpoint id. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* SNAT addresses; an endpoint names a run of them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct addr);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4194304); /* the worst case of 65535 endpoints takes 13.1 M references */
	__type(key, __u32);
	__type(value, struct references);
} selection SEC(".maps");

/* By service id. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct service_work);
} work SEC(".maps");

/* Connections in the flow table: [0] all of them, [endpoint id] those of it that are not
 * closed, replicas included. User space changes it too, through shared memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} active SEC(".maps");

/* By replicated endpoint id. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct endpoint_stats);
} traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct marks);
} syn_marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct addr);
	__type(value, __u32);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct addr);
	__type(value, struct lease);
} leases SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lease_term);
} terms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PREDECESSORS);
	__type(key, __u32);
	__type(value, struct predecessor);
} predecessors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PEER_LINKS);
	__type(key, __u32);
	__type(value, struct peer_link);
} peers SEC(".maps");

/* One word: a bit for each slot whose node lives. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} living SEC(".maps");

/* Where answers come from of flows that another node may know: the endpoints' addresses and ports;
 * enum origin_flag, and slots. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, __u32);
} origins SEC(".maps");

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

/* The packet at hand, for the programs of a hook that come after its parser. What they read
 * from here the verifier knows nothing about, so it follows their paths once and not once for
 * every way through the parser. Packets on one CPU do not interrupt each other. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} scratch SEC(".maps");

/* The two halves of a connection that is being made: on the stack, at the bottom of the deepest
 * chain of calls, they would take more than kernels that round frames up to 32 bytes have. */
struct binding {
	struct flow_key rkey;
	struct flow v;
	__u32 copied; /* v is what another packet has made */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct binding);
} bindings SEC(".maps");

/* What a search through a selection table has found so far; see least_connections. */
struct search {
	__u64 fewest;
	__u32 weight; /* 0: nothing yet */
	__u32 index;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct search);
} searches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct workspace);
} workspaces SEC(".maps");

/* The programs of one hook; each load fills an array of its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TAIL_MAX);
	__type(key, __u32);
	__type(value, __u32);
} tails SEC(".maps");

/* The same for the XDP hook. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TAIL_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xdp_tails SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STATIONS);
	__type(key, __u32);
	__type(value, struct station);
} stations SEC(".maps");

/* For the clock program only; not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} clocks SEC(".maps");

/* For the program that looks up many flows; not pinned. User space shares the memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FINDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct find);
} finds SEC(".maps");

/* For the program that puts half-open connections of other nodes in; not pinned. User space shares
 * the memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ARRIVALS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct arrival);
} arrivals SEC(".maps");

static __always_inline struct packet *current_packet(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/* The binding at hand, as it is. */
static __always_inline struct binding *same_binding(void)
{
	return bpf_map_lookup_elem(&bindings, (const void *)&zero_key);
}

/* A new one. */
static __always_inline struct binding *get_binding(void)
{
	struct binding *b = same_binding();

	if (b)
		__builtin_memset(b, 0, sizeof(*b));
	return b;
}

/* just_made returns the forward half that the packet at hand has put into half_open; its state is
 * FLOW_NONE when another CPU has put one there. */
static __always_inline struct flow *just_made(void)
{
	struct binding *b = same_binding();

	return b ? &b->v : NULL;
}

/* count adds to a counter of this CPU. */
static __always_inline void count(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &index);

	if (value)
		(*value)++;
	step(STEP_COUNT, 0, index);
}

/* The one way out for a packet that is not passed on. */
static __always_inline int drop(__u32 reason)
{
	count(reason);
	return V_DROP;
}
