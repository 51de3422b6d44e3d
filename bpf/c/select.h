// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Which service a packet is for, and which endpoint takes its flow. */
#pragma once

#include "flow.h"

/* Finaliser of MurmurHash3 (public domain, A. Appleby): every input bit reaches every
 * output bit. */
static __always_inline __u64 mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 33;
	return h;
}

/* tuple_hash depends on nothing but the tuple and the service's seed, so all nodes agree. */
static __always_inline __u64 tuple_hash64(const struct flow_key *k, __u32 seed)
{
	__u64 h = mix(k->saddr.d[0] ^ ((__u64)seed << 32 | k->proto));

	h = mix(h ^ k->saddr.d[1]);
	h = mix(h ^ k->daddr.d[0]);
	h = mix(h ^ k->daddr.d[1]);
	return mix(h ^ ((__u64)k->sport << 16 | k->dport));
}

static __always_inline __u32 tuple_hash(const struct flow_key *k, __u32 seed)
{
	return tuple_hash64(k, seed) >> 32;
}

/* find_range looks for a service of several ports. */
static __noinline struct service *find_range(const struct packet *p, struct service_key *skey)
{
	struct range_key rkey = {};
	struct range *r;

	rkey.prefix_len = 8 * (sizeof(rkey) - sizeof(rkey.prefix_len));
	__builtin_memcpy(rkey.vip, &p->key.daddr, sizeof(rkey.vip));
	rkey.proto = p->key.proto;
	rkey.port = p->key.dport;
	r = bpf_map_lookup_elem(&ranges, &rkey);
	if (!r)
		return NULL;
	skey->port = r->first_port;
	return bpf_map_lookup_elem(&services, skey);
}

/* find_service returns the service that listens where the packet goes. */
static __always_inline struct service *find_service(const struct packet *p)
{
	struct service_key skey = {};
	struct service *svc;

	skey.vip = p->key.daddr;
	skey.port = p->key.dport;
	skey.proto = p->key.proto;
	svc = bpf_map_lookup_elem(&services, &skey);
	if (svc || !(p->vip & VIP_F_RANGES))
		return svc;
	return find_range(p, &skey);
}

/* reference returns the endpoint id at an index of a service's selection table; 0: none. */
static __always_inline __u32 reference(const struct service *svc, __u32 index)
{
	__u32 at = svc->table_base + index, entry = at / REFS_PER_ENTRY;
	struct references *refs = bpf_map_lookup_elem(&selection, &entry);

	return refs ? refs->ref[at % REFS_PER_ENTRY] : 0;
}

static __always_inline struct endpoint *get_endpoint(__u32 id)
{
	return bpf_map_lookup_elem(&endpoints, &id);
}

/* least_connections returns the index of the endpoint with the fewest connections for its
 * weight, the first such one from start on, so that equals take turns.
 *
 * It is a global function, so that the verifier follows its loop once. What was found so far lies
 * in a map, where the verifier knows nothing about it: in registers, 6.1 followed 256 rounds in
 * each combination of what it thought it knew, two thirds of the instructions it allows. */
__attribute__((noinline)) __u32 least_connections(const struct service *svc, __u32 start)
{
	struct search *best = bpf_map_lookup_elem(&searches, (const void *)&zero_key);
	__u32 length, i, index, id;
	struct endpoint *ep;
	__u64 n;

	if (!svc || !best)
		return 0;
	length = svc->table_len;
	best->weight = 0;
	best->index = 0;
	for (i = 0; i < 256 && i < length; i++) {
		index = (start + i) % length;
		id = reference(svc, index);
		ep = get_endpoint(id);
		if (!ep || !ep->weight)
			continue;
		n = get_active(id);
		/* n / ep->weight < fewest / weight, without dividing */
		if (best->weight && n * best->weight >= best->fewest * ep->weight)
			continue;
		best->fewest = n;
		best->weight = ep->weight;
		best->index = index;
	}
	return best->index;
}

/* first_index is where in the selection table the search starts. */
static __always_inline __u32 first_index(const struct service *svc, __u32 hash)
{
	__u32 id = svc->id, position;
	struct service_work *w;

	if (svc->algorithm == ALGORITHM_MAGLEV)
		return hash;
	w = bpf_map_lookup_elem(&work, &id);
	position = w ? __sync_fetch_and_add(&w->position, 1) : hash;
	if (svc->algorithm == ALGORITHM_LC)
		return least_connections(svc, position);
	return position;
}
