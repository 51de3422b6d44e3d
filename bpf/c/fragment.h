// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Fragments: the later ones of a datagram follow its first, which has the ports. */
#pragma once

#include "flow.h"

#define FRAGMENT_SECONDS 30 /* a reassembly takes no longer (RFC 1122, 3.3.2; RFC 8200, 4.5: 60) */

static __always_inline void fragment_key(struct fragment_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->key.saddr;
	key->daddr = p->key.daddr;
	key->id = p->frag_id;
	key->proto = p->key.proto;
}

/* note_first remembers the ports of a first fragment. Only one that follows a flow is worth it:
 * others must not push it out. */
static __noinline int note_first(const struct packet *p)
{
	struct fragment value = {.sport = p->key.sport, .dport = p->key.dport, .seen = p->now};
	struct fragment_key key;

	fragment_key(&key, p);
	return bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
}

/* follow_first gives a later fragment the ports of its first, which makes it PACKET_F_BODY. One
 * whose first is not known keeps PACKET_F_LATER. */
static __noinline int follow_first(struct packet *p)
{
	struct fragment_key key;
	struct fragment *first;

	if (p->kind != KIND_FLOW)
		return V_CONTINUE;
	fragment_key(&key, p);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || age_of(p->now, first->seen) > FRAGMENT_SECONDS * (cfg_hz ? cfg_hz : 250))
		return V_CONTINUE;
	p->key.sport = first->sport;
	p->key.dport = first->dport;
	p->flags = (p->flags & ~PACKET_F_LATER) | PACKET_F_BODY;
	count(COUNTER_FRAGMENT);
	return V_CONTINUE;
}
