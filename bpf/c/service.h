// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* New flows, and what becomes of packets that belong to none. */
#pragma once

#include "affinity.h"
#include "claim.h"
#include "flood.h"
#include "fragment.h"

/* insert_half puts the forward half into half_open. Where the packet is rewritten by v, and not
 * by the entry found again, it is counted here. */
static __always_inline long insert_half(const struct packet *p, struct flow *v)
{
	long err;

	if (same_family(p, v) && v->mode != MODE_DSR_TUNNEL) {
		v->bytes_lo = p->bytes;
		v->packets_lo = p->segments;
	}
	err = half_insert(&p->key, v, 1);
	if (err) {
		v->state = FLOW_NONE; /* nothing to rewrite by */
		return err;
	}
	count(COUNTER_CREATED);
	tell_half(p, v, RECORD_NEW);
	return 0;
}

/* begin fills in what is the same in either half of a new connection. */
static __always_inline void begin(struct flow *v, const struct packet *p, const struct service *svc,
				  __u32 id)
{
	v->state = FLOW_SYN;
	v->service = svc->id;
	v->endpoint = id;
	v->mode = svc->mode;
	v->owner_slot = cfg_slot;
	v->last_seen = p->now;
	v->created = p->created;
}

/* bind_one creates the one entry of a connection whose replies do not pass here.
 *
 * Like bind it is a global function, which the verifier follows once, by itself, and not in every
 * round of the loop that calls it; so it may rely on nothing that its caller knows. */
__attribute__((noinline)) int bind_one(const struct service *svc, __u32 id)
{
	struct packet *p = current_packet();
	struct binding *b = get_binding();
	struct endpoint *ep;
	long err;

	if (!p || !b || !svc)
		return V_RETRY;
	ep = get_endpoint(id);
	if (!ep || ep->service != svc->id) /* the table has been replaced since it was read */
		return V_RETRY;
	begin(&b->v, p, svc, id);
	b->v.new_saddr = p->key.saddr;
	b->v.new_sport = p->key.sport;
	b->v.new_daddr = ep->addr;
	b->v.new_dport = p->key.dport;
	err = insert_half(p, &b->v);
	return err && err != -EEXIST ? drop(DROP_HALF_OPEN) : V_FORWARD;
}

/* bind creates both half-open entries towards one endpoint. */
__attribute__((noinline)) int bind(const struct service *svc, __u32 id, __u32 hash)
{
	struct packet *p = current_packet();
	struct binding *b = get_binding();
	struct endpoint *ep;
	struct flow *there;
	struct addr *source;
	__u32 at, run;
	long err;

	if (!p || !b || !svc)
		return V_RETRY;
	ep = get_endpoint(id);
	if (!ep || ep->service != svc->id)
		return V_RETRY;
	b->rkey.saddr = ep->addr;
	b->rkey.sport = bpf_htons(bpf_ntohs(ep->port) + bpf_ntohs(p->key.dport) - svc->first_port);
	b->rkey.proto = p->key.proto;
	begin(&b->v, p, svc, id);
	b->v.flags = FLOW_F_REPLY;
	b->v.new_saddr = p->key.daddr;
	b->v.new_sport = p->key.dport;
	b->v.new_daddr = p->key.saddr;
	b->v.new_dport = p->key.sport;
	/* Both ends of the run at once: user space may be writing another. */
	run = *(volatile __u32 *)&ep->source_base;
	if (!(run >> 16)) {
		b->rkey.daddr = p->key.saddr;
		b->rkey.dport = p->key.sport;
		err = claim_dnat(p, &b->rkey, &b->v);
	} else {
		at = (run & 0xffff) + (hash >> 16) % (run >> 16);
		source = bpf_map_lookup_elem(&sources, &at);
		if (!source)
			return drop(DROP_NO_ENDPOINT);
		b->rkey.daddr = *source;
		err = claim_snat(hash);
	}
	if (err)
		return V_RETRY;
	turn(&b->v, &b->rkey);
	err = insert_half(p, &b->v);
	if (err) {
		/* Another CPU was faster with the same packet, in dnat even with the same tuple. */
		there = half_lookup(&p->key);
		if (!there || !mirrors(&b->rkey, there))
			half_delete(&b->rkey);
		return err == -EEXIST ? V_FORWARD : drop(DROP_HALF_OPEN);
	}
	return V_FORWARD;
}

static __always_inline int bind_to(const struct service *svc, __u32 id, __u32 hash)
{
	if (svc->mode >= MODE_DSR)
		return bind_one(svc, id);
	return bind(svc, id, hash);
}

/* table_full refuses new flows before the endpoint hears of them. */
static __always_inline int table_full(const struct service *svc)
{
	if (get_active(0) < cfg_max_flows)
		return V_CONTINUE;
	count(DROP_TABLE_FULL);
	return svc->flags & SERVICE_F_FULL_RESET ? V_REFUSE : V_DROP;
}

/* new_flow selects an endpoint and binds the connection to it. */
static __noinline int new_flow(const struct packet *p, const struct service *svc)
{
	__u32 hash = tuple_hash(&p->key, svc->seed), length = svc->table_len, index, id, try;
	int v;

	if (!length)
		return svc->flags & SERVICE_F_CLOSED ? V_REFUSE : drop(DROP_NO_ENDPOINT);
	v = table_full(svc);
	if (v >= 0)
		return v;
	v = admit(p, svc);
	if (v >= 0)
		return v;
	if (svc->affinity) {
		id = remembered(p, svc);
		step(STEP_AFFINITY, id, 0);
		v = id ? bind_to(svc, id, mix(hash)) : V_RETRY;
		if (v == V_FORWARD) {
			count(COUNTER_AFFINITY);
			remember(p, svc, id);
		}
		if (v != V_RETRY)
			return v;
	}
	index = first_index(svc, hash);
	hash = mix(hash);
	for (try = 0; try < ENDPOINT_TRIES; try++) {
		id = reference(svc, (index + try) % length);
		if (!id)
			return drop(DROP_NO_ENDPOINT);
		step(STEP_SELECTED, id, (index + try) % length);
		v = bind_to(svc, id, hash + (try << 16)); /* by the next source, too */
		if (v == V_RETRY)
			step(STEP_RETRY, id, 0);
		if (v == V_FORWARD && svc->affinity)
			remember(p, svc, id);
		if (v != V_RETRY)
			return v;
	}
	return drop(svc->mode == MODE_DNAT ? DROP_DNAT_COLLISION : DROP_SNAT_EXHAUSTED);
}

static __always_inline int icmp_to_vip(const struct packet *p)
{
	__u8 echo = p->flags & PACKET_F_V6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST;

	/* The host answers echoes, and for the VIP's neighbours (RFC 4861). */
	if (p->icmp_type == echo || p->flags & PACKET_F_LATER) {
		count(COUNTER_ECHO);
		return V_PASS;
	}
	if (p->flags & PACKET_F_V6 && p->icmp_type >= ICMP6_NDP_FIRST && p->icmp_type <= ICMP6_NDP_LAST)
		return V_PASS;
	return drop(DROP_ICMP);
}

/* to_vip judges what is addressed to a VIP and belongs to no service. */
static __always_inline int to_vip(const struct packet *p)
{
	if (p->key.proto == IPPROTO_ICMP || p->key.proto == IPPROTO_ICMPV6)
		return icmp_to_vip(p);
	if (p->kind == KIND_OTHER)
		return drop(DROP_PROTOCOL);
	if (p->flags & (PACKET_F_LATER | PACKET_F_BODY))
		return drop(DROP_FRAGMENT);
	if (p->key.proto != IPPROTO_UDP && (p->tcp_flags & TCP_SYN) &&
	    !(p->tcp_flags & (TCP_RST | TCP_FIN)))
		return V_REFUSE;
	return drop(DROP_NO_SERVICE);
}

static __always_inline int is_land(const struct packet *p)
{
	return p->key.saddr.d[1] == p->key.daddr.d[1] && p->key.saddr.d[0] == p->key.daddr.d[0];
}

/* is_martian tells whether no host has such an address, or none that packets are passed on for
 * (RFC 1812, 5.3.7; RFC 4291, 2.5 and 2.7). */
static __always_inline int is_martian(const struct addr *a)
{
	if (is_v4(a))
		return !a->b[12] || a->b[12] == 127 || (a->b[12] & 0xf0) == 224 || a->w[3] == ~0U;
	return a->b[0] == 0xff || (a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80) ||
	       (!a->d[0] && !a->w[2] && !(a->w[3] & ~bpf_htonl(1)));
}

/* Echoes of neighbours. */
#define ECHO_PORT 3785        /* RFC 5881, 4 */
#define ECHO_TTL 255          /* who sent it is on this link (RFC 5082) */
#define ECHO_LEN 24
#define ECHO_MAGIC 0x50544543 /* "PTEC", how the payload of our own echoes begins */

/* is_probe tells whether the packet may be a neighbour's probe (see tc_echo.h). */
static __always_inline int is_probe(const struct packet *p)
{
	return p->kind == KIND_FLOW && p->key.proto == IPPROTO_UDP && p->key.dport == bpf_htons(ECHO_PORT) &&
	       p->ttl == ECHO_TTL && p->payload == sizeof(struct udphdr) + ECHO_LEN &&
	       !(p->flags & ~PACKET_F_V6);
}

/* miss handles a packet that has an entry neither in flows nor in half_open. */
static __noinline int miss(struct packet *p)
{
	__u32 *vip = bpf_map_lookup_elem(&vips, &p->key.daddr);

	step(STEP_VIP, 0, vip != NULL);
	if (!vip)
		return is_probe(p) ? V_ECHO : V_PASS;
	p->vip = *vip;
	if (p->flags & PACKET_F_MALFORMED)
		return drop(DROP_MALFORMED);
	if (is_land(p))
		return drop(DROP_LAND);
	/* Neighbour discovery has such sources by right. */
	if (p->kind == KIND_FLOW && is_martian(&p->key.saddr))
		return drop(DROP_MARTIAN);
	if (p->kind == KIND_FLOW && !(p->flags & (PACKET_F_LATER | PACKET_F_BODY)))
		return V_NEW;
	return to_vip(p);
}

/* in_half_open returns the half-open entry by which the packet is to be forwarded, or the
 * established one it was promoted to; NULL and a verdict else. */
static __always_inline struct flow *in_half_open(const struct packet *p, struct flow *h,
						 int *verdict)
{
	struct flow *f;

	*verdict = half_open_step(p, h);
	if (*verdict == V_FORWARD)
		return h;
	if (*verdict != V_FORWARD && *verdict != V_CONTINUE)
		return NULL;
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (!f) { /* taken out again meanwhile */
		*verdict = drop(DROP_NO_FLOW);
		return NULL;
	}
	/* The packet that ends the handshake may also begin the end. */
	*verdict = needs_care(p, f) ? flow_care(p, f) : V_FORWARD;
	return *verdict == V_FORWARD ? f : NULL;
}

static __always_inline struct flow *find_whole(struct packet *p, int *verdict)
{
	struct flow *f;

	if (p->kind != KIND_FLOW || p->flags & PACKET_F_LATER)
		goto missed;
	f = p->missed ? NULL : bpf_map_lookup_elem(&flows, &p->key);
	if (cfg_former && !f && bring_own())
		f = bpf_map_lookup_elem(&flows, &p->key);
	if (f) {
		note_flow(STEP_FLOW, f);
		*verdict = needs_care(p, f) ? flow_care(p, f) : V_FORWARD;
		if (*verdict == V_FORWARD)
			return f;
		if (*verdict != V_MISS)
			return NULL;
	}
	f = half_copy(&p->key);
	if (f) {
		note_flow(STEP_HALF_OPEN, f);
		return in_half_open(p, f, verdict);
	}
missed:
	*verdict = miss(p);
	if (*verdict != V_NEW || (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return NULL;
	/* Another CPU may have promoted the connection after we looked into flows and before we looked
	 * into half_open: then it is in flows now. A SYN, which most new connections begin with, is not
	 * worth the third look. */
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (!f || needs_care(p, f))
		return NULL;
	*verdict = V_FORWARD;
	return f;
}

/* find_slow and find_new are the core of the packet path, the same for every hook: they return
 * the entry by which the packet is rewritten, or NULL and a verdict. That of find_slow may be
 * V_NEW: find_new goes on, in a program of its own. */
static __always_inline struct flow *find_slow(struct packet *p, int *verdict)
{
	struct flow *f;

	if (p->flags & PACKET_F_LATER)
		follow_first(p);
	f = find_whole(p, verdict);
	if (f && p->flags & PACKET_F_FIRST)
		note_first(p);
	return f;
}

/* created returns what the packet is rewritten by after miss has found a service: the entry as it
 * was made. Looking it up would take time. */
static __always_inline struct flow *created(const struct packet *p, int *verdict)
{
	struct flow *f = just_made();

	if (!f || f->state == FLOW_NONE)
		f = half_copy(&p->key);
	if (f)
		note_flow(STEP_CREATED, f);
	else
		*verdict = drop(DROP_HALF_OPEN);
	return f;
}

/* make_new creates a flow, if a service listens where the packet goes. V_FORWARD: there is an entry
 * in half_open now, and what just_made returns. It works on a copy of the service: the kernel reuses
 * an entry that has been replaced for the next one that is written, which may be another service's. */
static __always_inline int make_new(const struct packet *p)
{
	struct service *found = find_service(p), svc;

	if (!found)
		return to_vip(p);
	svc = *found;
	note_service(&svc);
	if (p->key.proto != IPPROTO_UDP &&
	    (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
		return drop(DROP_NO_FLOW);
	return new_flow(p, &svc);
}

static __always_inline struct flow *find_new(const struct packet *p, int *verdict)
{
	struct flow *f;

	*verdict = make_new(p);
	if (*verdict != V_FORWARD)
		return NULL;
	f = created(p, verdict);
	if (f && p->flags & PACKET_F_FIRST)
		note_first(p);
	return f;
}

/* uncount_made takes the packet out of the entry it has made: another hook will count it. */
static __always_inline void uncount_made(const struct packet *p, const struct flow *f)
{
	struct binding *b = same_binding();
	struct flow *h;

	if (!b || f != &b->v || b->copied)
		return;
	h = half_lookup(&p->key);
	if (h) {
		h->packets_lo = 0;
		h->bytes_lo = 0;
	}
}
