// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Clients that stay with their endpoint. */
#pragma once

#include "select.h"

static __always_inline void affinity_key(struct affinity_key *k, const struct packet *p,
					 const struct service *svc)
{
	__builtin_memset(k, 0, sizeof(*k));
	k->client = p->key.saddr;
	k->service = svc->id;
}

/* remembered returns the id of the endpoint the client was with, when that still takes new
 * flows of this service; else 0. */
static __noinline __u32 remembered(const struct packet *p, const struct service *svc)
{
	struct affinity_key k;
	struct affinity *a;
	struct endpoint *ep;
	__u32 id;

	affinity_key(&k, p, svc);
	a = bpf_map_lookup_elem(&affinities, &k);
	if (!a || age_of(p->created, a->used) > svc->affinity)
		return 0;
	id = a->endpoint;
	ep = get_endpoint(id);
	if (!ep || ep->service != svc->id || !(ep->flags & ENDPOINT_F_NEW))
		return 0;
	return id;
}

static __noinline int remember(const struct packet *p, const struct service *svc, __u32 id)
{
	struct affinity value = {.endpoint = id, .used = p->created};
	struct affinity_key k;

	affinity_key(&k, p, svc);
	return bpf_map_update_elem(&affinities, &k, &value, BPF_ANY);
}
