// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The life of a flow: half-open, established, closing, closed; adoption of replicas. */
#pragma once

#include "early.h"

#define FLOW_F_CARE (FLOW_F_REPLICA | FLOW_F_OWN_RST | FLOW_F_PEER_RST | FLOW_F_DOOMED)

/* A packet that is more than "one more packet" of an established flow. */
static __always_inline int needs_care(const struct packet *p, const struct flow *f)
{
	__u8 flags = f->flags;

	if (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		return 1;
	if (!(flags & FLOW_F_CARE))
		return 0;
	return (flags & (FLOW_F_CARE | FLOW_F_QUIET)) != FLOW_F_GUEST;
}

/* age_of is how much older than now a stamp is; that of another CPU may be ahead. */
static __always_inline __u32 age_of(__u32 now, __u32 stamp)
{
	return (__s32)(now - stamp) < 0 ? 0 : now - stamp;
}

/* other_half returns the other half, in flows, of the connection whose half f stands under key, and
 * its key. What stands there may belong to another connection, when f is what is left of one. */
static __always_inline struct flow *other_half(const struct flow_key *key, const struct flow *f,
					       struct flow_key *okey)
{
	struct flow *other;

	other_key(okey, key, f);
	if (one_half(f))
		return NULL;
	other = bpf_map_lookup_elem(&flows, okey);
	return other && mirrors(key, other) ? other : NULL;
}

/* remove_flow takes both halves out of flows and says so. Whoever takes out the forward half
 * counts the connection off. */
static __noinline int remove_flow(const struct packet *p, const struct flow_key *key,
				  const struct flow *f)
{
	struct flow_key okey;
	struct flow *other;
	int reply = f->flags & FLOW_F_REPLY, open = f->state != FLOW_CLOSED;
	__u32 endpoint = f->endpoint;
	long mine, theirs = 0;

	other = other_half(key, f, &okey);
	emit(p, key, f, other, EVENT(RECORD_DELETE, RECORD_CLOSE));
	if (other)
		theirs = bpf_map_delete_elem(&flows, &okey);
	mine = bpf_map_delete_elem(&flows, key);
	if (cfg_former) {
		bpf_map_delete_elem(&former, &okey);
		bpf_map_delete_elem(&former, key);
	}
	if (reply ? (!other || theirs) : mine)
		return 0;
	add_active(0, -1);
	if (open && endpoint)
		add_active(endpoint, -1);
	return 0;
}

static __always_inline __u8 closing_state(__u8 flags)
{
	if (flags & (FLOW_F_OWN_RST | FLOW_F_PEER_RST))
		return FLOW_CLOSED;
	if ((flags & FLOW_F_OWN_FIN) && (flags & FLOW_F_PEER_FIN))
		return FLOW_CLOSED;
	if (flags & (FLOW_F_OWN_FIN | FLOW_F_PEER_FIN))
		return FLOW_FIN;
	return FLOW_ESTABLISHED;
}

/* Each failure is another CPU's success, and no packet needs more than one. */
#define WORD_TRIES 8

/* change_word sets and clears flags of one half of an established connection, and the state that
 * follows from them; who clears FLOW_F_REPLICA becomes the owner. A doomed connection keeps its state:
 * what its flags say is who has been told. Returns whether anything has changed. */
static __noinline int change_word(struct flow *f, __u32 set, __u32 clear)
{
	union {
		struct flow_word w;
		__u32 u;
	} old, new;
	__u32 *word = (__u32 *)&f->state;
	int i;

	for (i = 0; i < WORD_TRIES; i++) {
		old.u = *(volatile __u32 *)word;
		new = old;
		new.w.flags = (old.w.flags | set) & ~clear;
		if (clear & FLOW_F_REPLICA)
			new.w.owner_slot = cfg_slot;
		if ((set | clear) & FLOW_F_CLOSING && !(new.w.flags & FLOW_F_DOOMED))
			new.w.state = closing_state(new.w.flags);
		if (new.u == old.u)
			return 0;
		if (__sync_val_compare_and_swap(word, old.u, new.u) != old.u)
			continue;
		if (new.w.flags & FLOW_F_REPLY || (old.w.state == FLOW_CLOSED) == (new.w.state == FLOW_CLOSED))
			return 1;
		if (f->endpoint)
			add_active(f->endpoint, new.w.state == FLOW_CLOSED ? -1 : 1);
		return 1;
	}
	return 0;
}

/* After so long what the other side sent before a reset is no more under way. */
#define UNDER_WAY_SECONDS 3

/* disproved returns the flag of the reset that a plain segment shows to be forged, or out of window
 * (RFC 5961, 3): who has reset a connection sends no data afterwards, and who has been told of a
 * reset sends nothing once what was under way has come. */
static __always_inline __u32 disproved(const struct packet *p, const struct flow *f,
				       const struct flow *other)
{
	if (f->flags & FLOW_F_OWN_RST)
		return FLOW_F_OWN_RST;
	if (f->flags & FLOW_F_PEER_RST && other &&
	    age_of(p->now, other->last_seen) >= UNDER_WAY_SECONDS * (cfg_hz ? cfg_hz : 250))
		return FLOW_F_PEER_RST;
	return 0;
}

/* tcp_step sets the closing bits that this packet brings, on both halves, or clears one. */
static __always_inline void tcp_step(const struct packet *p, struct flow *f, struct flow *other)
{
	__u32 own = 0, wrong = 0;

	if (p->tcp_flags & TCP_RST)
		own = FLOW_F_OWN_RST;
	else if (p->tcp_flags & TCP_FIN)
		own = FLOW_F_OWN_FIN;
	else if (!(p->tcp_flags & TCP_SYN))
		wrong = disproved(p, f, other);
	if (!own && !wrong)
		return;
	if (change_word(f, own, wrong) && wrong)
		count(COUNTER_REVIVED);
	if (other)
		change_word(other, other_side(own), other_side(wrong));
}

/* is_over: nothing more is expected. In DSR the endpoint's FIN is not seen, so the client's alone
 * ends the connection. */
static __always_inline int is_over(const struct flow *f)
{
	return f->state == FLOW_CLOSED || (one_half(f) && f->state == FLOW_FIN);
}

/* begins_anew: the client opens a connection. */
static __always_inline int begins_anew(const struct packet *p, const struct flow *f)
{
	return p->key.proto != IPPROTO_UDP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
	       !(f->flags & FLOW_F_REPLY);
}

/* teach sets and clears flags of both halves as another node has told. Those of a doomed connection say
 * who has been told, and stay. */
static __always_inline int teach(const struct ending *e, struct flow *f, struct flow *other)
{
	if (f->flags & FLOW_F_DOOMED || !change_word(f, e->set, e->clear))
		return 0;
	if (other)
		change_word(other, other_way(e->set), other_way(e->clear));
	if (e->clear & FLOW_F_REPLICA)
		count(COUNTER_ADOPTED);
	return 1;
}

/* doom marks both halves of a connection that user space ends, or has them learn what another node
 * knows of it. */
static __always_inline int doom(const struct ending *e)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &e->key), *other;
	struct flow_key okey;

	if (!f || f->flags & FLOW_F_REPLY || f->created != e->created || f->endpoint != e->endpoint)
		return 0;
	other = other_half(&e->key, f, &okey);
	if (e->learn)
		return teach(e, f, other);
	f->last_seen = e->last_seen;
	change_word(f, FLOW_F_DOOMED, 0);
	if (!other)
		return 1;
	other->last_seen = e->last_seen;
	change_word(other, FLOW_F_DOOMED, 0);
	return 2;
}

/* After so long without a word of the owner a guest takes its flow over. Owners speak every five seconds of what
 * they forward, from the tenth second of its life on. */
#define GUEST_SECONDS 8
#define GUEST_YOUNG_SECONDS 16

/* is_guest tells whether this node is to forward a replica beside its owner instead of taking it over:
 * where the two directions of a connection pass two nodes, those would take it from each other for ever.
 * What is seen of the owner is its word about the direction that passes there. Whoever gets both is no
 * guest. */
static __always_inline int is_guest(const struct packet *p, const struct flow *f, const struct flow *other)
{
	__u32 id = f->endpoint, zero = 0, *alive, hz = cfg_hz ? cfg_hz : 250;
	struct endpoint *ep;

	if ((f->flags & FLOW_F_CARE) != FLOW_F_REPLICA || f->owner_slot == cfg_slot || !other ||
	    other->flags & FLOW_F_QUIET || p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		return 0;
	ep = bpf_map_lookup_elem(&endpoints, &id);
	if (!ep || !(ep->flags & ENDPOINT_F_SHARED))
		return 0;
	alive = bpf_map_lookup_elem(&living, &zero);
	if (!alive || !(*alive >> (f->owner_slot & 31) & 1))
		return 0;
	return age_of(p->now, other->last_seen) < GUEST_SECONDS * hz ||
	       age_of(p->created, f->created) < GUEST_YOUNG_SECONDS * hz >> CREATED_SHIFT;
}

/* doomed_step has the sender told that the connection is over, and notes that. */
static __always_inline int doomed_step(const struct packet *p, struct flow *f)
{
	change_word(f, FLOW_F_OWN_RST, 0);
	count(DROP_DOOMED);
	return p->tcp_flags & TCP_RST ? V_DROP : V_REFUSE;
}

/* flow_care handles the rare packets of a flow in the flow table.
 * V_FORWARD: go on with this flow. V_MISS: the flow is gone, start anew. V_REFUSE: the
 * connection is over. */
static __noinline int flow_care(const struct packet *p, struct flow *f)
{
	struct flow_key okey;
	struct flow *other;
	__u8 before = f->state;
	__u32 reason = 0;

	if ((is_over(f) || f->flags & FLOW_F_DOOMED) && begins_anew(p, f)) {
		remove_flow(p, &p->key, f);
		count(COUNTER_REPLACED);
		return V_MISS;
	}
	if (f->flags & FLOW_F_DOOMED)
		return doomed_step(p, f);
	other = other_half(&p->key, f, &okey);
	if (is_guest(p, f, other)) {
		change_word(f, FLOW_F_QUIET, 0);
		count(COUNTER_GUEST);
		return V_FORWARD;
	}
	if (f->flags & FLOW_F_REPLICA && change_word(f, 0, FLOW_F_GUEST)) {
		if (other)
			change_word(other, 0, FLOW_F_GUEST);
		count(COUNTER_ADOPTED);
		reason = RECORD_ADOPT;
	}
	if (p->key.proto != IPPROTO_UDP)
		tcp_step(p, f, other);
	if (!reason && f->state != before)
		reason = f->state == FLOW_CLOSED ? RECORD_CLOSE : RECORD_STATE;
	if (reason)
		emit(p, &p->key, f, other, EVENT(RECORD_UPDATE, reason));
	return V_FORWARD;
}

/* turn makes of v, the half that matches key, the other half, with empty counters. */
static __always_inline void turn(struct flow *v, const struct flow_key *key)
{
	v->new_saddr = key->daddr;
	v->new_daddr = key->saddr;
	v->new_sport = key->dport;
	v->new_dport = key->sport;
	v->flags ^= FLOW_F_REPLY;
	v->bytes_lo = 0;
	v->bytes_hi = 0;
	v->packets_lo = 0;
	v->packets_hi = 0;
}

/* quiet_at_first returns the flag of a new flow of which the other nodes are not told, or not at
 * once: its service says so at its endpoints. */
static __always_inline __u8 quiet_at_first(const struct flow *v)
{
	__u32 id = v->endpoint;
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &id);

	return ep && ep->flags & ENDPOINT_F_QUIET ? FLOW_F_QUIET : 0;
}

/* louden has what happens to f told from now on. */
static __always_inline void louden(struct flow *f)
{
	__sync_fetch_and_and((__u32 *)&f->state, ~((__u32)FLOW_F_QUIET << 8));
}

/* promote_one is promote for a connection with a forward half only. */
static __noinline int promote_one(const struct packet *p, struct flow *h)
{
	struct flow v = *h;
	long err;

	v.state = FLOW_ESTABLISHED;
	v.flags |= quiet_at_first(&v);
	err = bpf_map_update_elem(&flows, &p->key, &v, BPF_NOEXIST);
	if (err == -EEXIST)
		return V_CONTINUE;
	if (err) {
		count(COUNTER_INSERT_FAILED);
		return drop(DROP_TABLE_FULL);
	}
	if (cfg_former)
		also_former(&p->key);
	add_active(0, 1);
	opened(&v);
	count(COUNTER_PROMOTED);
	h->state = FLOW_ESTABLISHED;
	if (!(v.flags & FLOW_F_QUIET))
		emit(p, &p->key, h, NULL, EVENT(RECORD_UPDATE, RECORD_NEW));
	half_delete(&p->key);
	return V_CONTINUE;
}

/* promote moves a connection from half_open to flows. The other half is built anew when the
 * table has already given its place away, so a flood cannot break a handshake that is under way.
 * V_CONTINUE: the flow table has the packet's entry now, and h is no longer to be looked at.
 *
 * Another connection may claim the other half's tuple when it is not in half_open: claim puts it there and
 * then looks into flows, we put it into flows and then look there, so at least one sees the other. */
static __noinline int promote(const struct packet *p, struct flow *h)
{
	struct flow_key okey;
	struct flow *other;
	struct flow v = *h;
	long err;

	other_key(&okey, &p->key, h);
	other = half_lookup(&okey);
	if (other && !mirrors(&p->key, other)) {
		half_delete(&p->key);
		return drop(DROP_SNAT_CONFLICT);
	}
	v.state = FLOW_ESTABLISHED;
	v.flags |= quiet_at_first(&v);
	err = bpf_map_update_elem(&flows, &p->key, &v, BPF_NOEXIST);
	if (err == -EEXIST) /* another CPU was faster */
		return V_CONTINUE;
	if (err) {
		count(COUNTER_INSERT_FAILED);
		return drop(DROP_TABLE_FULL);
	}
	turn(&v, &p->key);
	if (other) {
		v.bytes_lo = other->bytes_lo;
		v.bytes_hi = other->bytes_hi;
		v.packets_lo = other->packets_lo;
		v.packets_hi = other->packets_hi;
	}
	err = bpf_map_update_elem(&flows, &okey, &v, BPF_NOEXIST);
	if (err) {
		count(COUNTER_INSERT_FAILED);
		bpf_map_delete_elem(&flows, &p->key);
		return drop(err == -EEXIST ? DROP_SNAT_CONFLICT : DROP_TABLE_FULL);
	}
	other = half_lookup(&okey);
	if (other && !mirrors(&p->key, other)) {
		bpf_map_delete_elem(&flows, &okey);
		bpf_map_delete_elem(&flows, &p->key);
		half_delete(&p->key);
		return drop(DROP_SNAT_CONFLICT);
	}
	if (cfg_former) {
		also_former(&okey);
		also_former(&p->key);
	}
	add_active(0, 1);
	opened(&v);
	count(COUNTER_PROMOTED);
	h->state = FLOW_ESTABLISHED; /* what the record is to say; deleted below */
	if (!(v.flags & FLOW_F_QUIET))
		emit(p, &p->key, h, other, EVENT(RECORD_UPDATE, RECORD_NEW));
	half_delete(&okey);
	half_delete(&p->key);
	return V_CONTINUE;
}

/* mark_half sets the state of the half under key, if it is the one that from points to (NULL: any).
 * One that the endpoint has accepted is in use. */
static __noinline int mark_half(const struct flow_key *key, const struct flow_key *from,
				__u32 state)
{
	__u32 way;
	struct half_bucket *b = half_find(key, &way);
	struct flow *h;

	if (!b)
		return 0;
	h = &b->slot[way].f;
	if (from && !mirrors(from, h))
		return 0;
	h->state = state;
	half_use(b, way, state == FLOW_SYNACK);
	return 0;
}

/* mark_half_open sets the state on both halves, and in the copy of the packet's. */
static __noinline int mark_half_open(const struct packet *p, struct flow *h, __u32 state)
{
	struct flow_key okey;

	other_key(&okey, &p->key, h);
	mark_half(&p->key, NULL, state);
	mark_half(&okey, &p->key, state);
	h->state = state;
	if (state == FLOW_SYNACK)
		tell_half(p, h, RECORD_STATE);
	return V_FORWARD;
}

/* use_half keeps the packet's half from giving way: its sender goes on without an answer. */
static __noinline int use_half(const struct packet *p)
{
	__u32 way;
	struct half_bucket *b = half_find(&p->key, &way);

	if (b)
		half_use(b, way, 1);
	return 0;
}

/* ensure_other puts the other half back when it gave way: who keeps sending must
 * not wait for answers that no longer match anything. V_CONTINUE: another CPU has promoted the
 * connection since h was copied. */
static __noinline int ensure_other(const struct packet *p, const struct flow *h)
{
	struct flow_key okey;
	struct flow *other, *f;
	struct flow v = *h;
	long err = -EEXIST;

	other_key(&okey, &p->key, h);
	other = half_lookup(&okey);
	if (other && mirrors(&p->key, other))
		return V_FORWARD;
	f = bpf_map_lookup_elem(&flows, &okey);
	if (f && mirrors(&p->key, f))
		return V_CONTINUE;
	turn(&v, &p->key);
	if (!other && !f)
		err = half_insert(&okey, &v, 1);
	if (!err || err == -EBUSY) /* the bucket is held: the next packet will put it back */
		return V_FORWARD;
	/* The tuple belongs to another connection now; the next packet starts anew. */
	half_delete(&p->key);
	return drop(DROP_SNAT_CONFLICT);
}

/* half_open_one is half_open_step for a connection with a forward half only: what the
 * endpoint answers is not seen, so the client's next step must do. */
static __always_inline int half_open_one(const struct packet *p, struct flow *h)
{
	__u8 flags = p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST);

	/* A datagram for which XDP has made the entry, and which it has left to TC, is still the first. */
	if (p->key.proto == IPPROTO_UDP)
		return h->packets_lo ? promote_one(p, h) : V_FORWARD;
	if (flags == TCP_ACK)
		return promote_one(p, h);
	if (flags & TCP_RST)
		h->state = FLOW_REFUSED;
	else if (flags == TCP_SYN)
		h->state = FLOW_SYN;
	else
		return V_FORWARD;
	mark_half(&p->key, NULL, h->state);
	return V_FORWARD;
}

/* half_open_step handles a packet that matches a half-open entry, of which h is a copy. V_CONTINUE: see promote. */
static __always_inline int half_open_step(const struct packet *p, struct flow *h)
{
	int reply = h->flags & FLOW_F_REPLY, verdict;
	__u8 flags = p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST);

	if (h->flags & FLOW_F_REPLICA)
		adopt_half_open(p, h);
	if (!reply && (p->key.proto == IPPROTO_UDP || flags == TCP_SYN))
		tell_again(p, h);
	if (one_half(h))
		return half_open_one(p, h);
	if (p->key.proto == IPPROTO_UDP && reply)
		return promote(p, h);
	if (p->key.proto == IPPROTO_UDP) {
		use_half(p);
		return ensure_other(p, h);
	}
	if (reply && (flags & TCP_RST || flags == (TCP_SYN | TCP_ACK))) {
		verdict = ensure_other(p, h);
		if (verdict != V_FORWARD)
			return verdict;
	}
	if (flags & TCP_RST)
		return mark_half_open(p, h, FLOW_REFUSED);
	/* After a reset, too: the endpoint did not believe it, or it was of an earlier connection. */
	if (reply && flags == (TCP_SYN | TCP_ACK) && h->state != FLOW_SYNACK)
		return mark_half_open(p, h, FLOW_SYNACK);
	/* The endpoint knows its cookie again (RFC 9260, 5.1.5). Its INIT ACK has passed another node, or
	 * the word of it was lost: the client has no reason to repeat its COOKIE ECHO. */
	if (reply && flags == TCP_ACK && h->state == FLOW_SYN && p->key.proto == IPPROTO_SCTP)
		return promote(p, h);
	/* It has passed another node, or was lost with it: nobody says this who has not accepted. */
	if (reply && flags == TCP_ACK && h->state == FLOW_SYN)
		return mark_half_open(p, h, FLOW_SYNACK);
	if (!reply && flags == TCP_SYN && h->state == FLOW_REFUSED)
		return mark_half_open(p, h, FLOW_SYN);
	if (!reply && flags == TCP_ACK && h->state == FLOW_SYNACK)
		return promote(p, h);
	if (!reply && flags == TCP_SYN)
		return ensure_other(p, h);
	return V_FORWARD;
}
