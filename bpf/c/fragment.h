// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Fragments: the later ones of a datagram follow its first, which has the ports. */
#pragma once

#include "flow.h"

#define FRAGMENT_SECONDS 30 /* a reassembly takes no longer (RFC 1122, 3.3.2; RFC 8200, 4.5: 60) */

/* fragment_step notes the ports of a first fragment and gives them to the later ones, which
 * become PACKET_F_BODY. A later one whose first is not known keeps PACKET_F_LATER. */
static __noinline int fragment_step(struct packet *p)
{
	struct fragment_key key = {};
	struct fragment value = {}, *first;

	if (p->kind != KIND_FLOW)
		return V_CONTINUE;
	key.saddr = p->key.saddr;
	key.daddr = p->key.daddr;
	key.id = p->frag_id;
	key.proto = p->key.proto;
	if (p->flags & PACKET_F_FIRST) {
		value.sport = p->key.sport;
		value.dport = p->key.dport;
		value.seen = p->now;
		bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
		return V_CONTINUE;
	}
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first || p->now - first->seen > FRAGMENT_SECONDS * (cfg_hz ? cfg_hz : 250))
		return V_CONTINUE;
	p->key.sport = first->sport;
	p->key.dport = first->dport;
	p->flags = (p->flags & ~PACKET_F_LATER) | PACKET_F_BODY;
	count(COUNTER_FRAGMENT);
	return V_CONTINUE;
}
