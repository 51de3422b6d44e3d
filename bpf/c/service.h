// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* New flows: which service, which endpoint, which source port. */
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
static __always_inline __u32 tuple_hash(const struct flow_key *k, __u32 seed)
{
	__u64 h = mix(k->saddr.d[0] ^ ((__u64)seed << 32 | k->proto));

	h = mix(h ^ k->saddr.d[1]);
	h = mix(h ^ k->daddr.d[0]);
	h = mix(h ^ k->daddr.d[1]);
	h = mix(h ^ ((__u64)k->sport << 16 | k->dport));
	return h >> 32;
}

/* A reply tuple is claimed by its entry in half_open; only then are the established flows
 * looked at. In this order a promotion on another CPU cannot slip between. Returns NULL and
 * *err 0: claimed; NULL and *err: taken or failed; else the closed flow that holds it. */
static __always_inline struct flow *claim(const struct flow_key *rkey, const struct flow *rev,
					  long *err)
{
	struct flow *held;

	*err = bpf_map_update_elem(&half_open, rkey, rev, BPF_NOEXIST);
	if (*err)
		return NULL;
	held = bpf_map_lookup_elem(&flows, rkey);
	if (!held)
		return NULL;
	bpf_map_delete_elem(&half_open, rkey);
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
	return bpf_map_update_elem(&half_open, rkey, rev, BPF_NOEXIST);
}

/* claim_snat finds a source port of this node's range that is free towards the endpoint.
 * A closed flow's port is taken only when no free one was found, so that a connection that
 * is just ending can still exchange its last segments. */
static __noinline int claim_snat(const struct packet *p, struct flow_key *rkey,
				 const struct flow *rev, __u32 hash)
{
	__u32 base = SNAT_PORT_MIN + (cfg_slot & 7) * SNAT_PORTS_PER_SLOT;
	__be16 closed = 0;
	struct flow *held;
	long err;
	__u32 i;

	for (i = 0; i < SNAT_PROBES; i++) {
		rkey->dport = bpf_htons(base + (hash + i) % SNAT_PORTS_PER_SLOT);
		held = claim(rkey, rev, &err);
		if (!err)
			return 0;
		if (held && !closed)
			closed = rkey->dport;
	}
	if (!closed)
		return -EEXIST;
	rkey->dport = closed;
	return take_over(p, rkey, rev);
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
	return held ? take_over(p, rkey, rev) : -EEXIST;
}

/* bind creates both half-open entries towards one endpoint. */
static __noinline int bind(const struct packet *p, const struct service *svc,
			   const struct endpoint *ep, __u32 hash)
{
	struct flow_key rkey = {};
	struct flow v = {};
	long err;

	rkey.saddr = ep->addr;
	rkey.sport = ep->port;
	rkey.proto = p->key.proto;
	v.state = FLOW_SYN;
	v.flags = FLOW_F_REPLY;
	v.service = svc->id;
	v.mode = svc->mode;
	v.owner_slot = cfg_slot;
	v.last_seen = p->now;
	v.created = p->created;
	v.new_saddr = p->key.daddr;
	v.new_sport = p->key.dport;
	v.new_daddr = p->key.saddr;
	v.new_dport = p->key.sport;
	if (svc->mode == MODE_DNAT) {
		rkey.daddr = p->key.saddr;
		rkey.dport = p->key.sport;
		err = claim_dnat(p, &rkey, &v);
	} else {
		rkey.daddr = ep->source;
		err = claim_snat(p, &rkey, &v, hash);
	}
	if (err)
		return V_RETRY;
	turn(&v, &rkey);
	err = bpf_map_update_elem(&half_open, &p->key, &v, BPF_NOEXIST);
	if (err) {
		bpf_map_delete_elem(&half_open, &rkey);
		return err == -EEXIST ? V_FORWARD : drop(DROP_HALF_OPEN);
	}
	count(COUNTER_CREATED);
	return V_FORWARD;
}

/* first_index is where in the selection table the search starts. */
static __always_inline __u32 first_index(const struct service *svc, __u32 hash)
{
	__u32 *position;

	if (svc->algorithm != ALGORITHM_RR)
		return hash;
	position = bpf_map_lookup_elem(&rr, &svc->id);
	return position ? __sync_fetch_and_add(position, 1) : hash;
}

/* new_flow selects an endpoint and binds the connection to it. */
static __noinline int new_flow(const struct packet *p, const struct service *svc)
{
	__u32 hash = tuple_hash(&p->key, svc->seed);
	__u32 length = svc->table_len, base = svc->table_base, index, slot, try;
	struct endpoint *ep;
	__u32 *ref;
	int v;

	if (!length)
		return drop(DROP_NO_ENDPOINT);
	index = first_index(svc, hash);
	for (try = 0; try < ENDPOINT_TRIES; try++) {
		slot = base + (index + try) % length;
		ref = bpf_map_lookup_elem(&selection, &slot);
		if (!ref)
			return drop(DROP_NO_ENDPOINT);
		slot = *ref;
		ep = bpf_map_lookup_elem(&endpoints, &slot);
		if (!ep)
			return drop(DROP_NO_ENDPOINT);
		v = bind(p, svc, ep, mix(hash));
		if (v != V_RETRY)
			return v;
	}
	return drop(svc->mode == MODE_DNAT ? DROP_DNAT_COLLISION : DROP_SNAT_EXHAUSTED);
}

/* to_vip judges what is addressed to a VIP and belongs to no service. */
static __always_inline int to_vip(const struct packet *p)
{
	switch (p->kind) {
	case KIND_FRAGMENT:
		return drop(DROP_FRAGMENT);
	case KIND_ICMP:
		if (p->icmp_type != ICMP_ECHO_REQUEST)
			return drop(DROP_ICMP);
		count(COUNTER_ECHO);
		return V_PASS;
	case KIND_OTHER:
		return drop(DROP_PROTOCOL);
	}
	if (p->key.proto == IPPROTO_TCP && (p->tcp_flags & TCP_SYN) &&
	    !(p->tcp_flags & (TCP_RST | TCP_FIN)))
		return V_REFUSE;
	return drop(DROP_NO_SERVICE);
}

/* miss handles a packet without an entry in flows. V_FORWARD: there is an entry now, in
 * flows or in half_open. */
static __noinline int miss(const struct packet *p)
{
	struct service_key skey = {};
	struct service *svc;
	struct flow *h;

	if (p->kind == KIND_FLOW) {
		h = bpf_map_lookup_elem(&half_open, &p->key);
		if (h)
			return half_open_step(p, h);
		skey.vip = p->key.daddr;
		skey.port = p->key.dport;
		skey.proto = p->key.proto;
		svc = bpf_map_lookup_elem(&services, &skey);
		if (svc) {
			if (p->key.proto == IPPROTO_TCP &&
			    (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
				return drop(DROP_NO_FLOW);
			return new_flow(p, svc);
		}
	}
	if (!bpf_map_lookup_elem(&vips, &p->key.daddr))
		return V_PASS;
	return to_vip(p);
}

/* find_flow is the core of the packet path, the same for every hook: it returns the entry by
 * which the packet is rewritten, or NULL and a verdict. */
static __always_inline struct flow *find_flow(const struct packet *p, int *verdict)
{
	struct flow *f = NULL;

	if (p->kind == KIND_FLOW)
		f = bpf_map_lookup_elem(&flows, &p->key);
	*verdict = f ? V_FORWARD : V_MISS;
	if (f && needs_care(p, f))
		*verdict = flow_care(p, f);
	if (*verdict != V_MISS)
		return f;
	*verdict = miss(p);
	if (*verdict != V_FORWARD)
		return NULL;
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (f) {
		if (needs_care(p, f))
			flow_care(p, f);
		return f;
	}
	f = bpf_map_lookup_elem(&half_open, &p->key);
	if (!f)
		*verdict = drop(DROP_HALF_OPEN);
	return f;
}
