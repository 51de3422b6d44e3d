// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* How many new flows a service takes, and what happens beyond that. */
#pragma once

#include "select.h"

/* admit counts one more new flow against the service's rate. V_CONTINUE: it may be created. */
static __always_inline int admit(const struct packet *p, const struct service *svc, __u32 hash)
{
	__u32 id = svc->id, window = p->now / (cfg_hz ? cfg_hz : 250);
	struct service_work *w;

	if (!svc->rate)
		return V_CONTINUE;
	w = bpf_map_lookup_elem(&work, &id);
	if (!w)
		return V_CONTINUE;
	if (w->window != window) {
		w->window = window;
		w->count = 0;
	}
	if (__sync_fetch_and_add(&w->count, 1) < svc->rate)
		return V_CONTINUE;
	return drop(DROP_FLOOD);
}
