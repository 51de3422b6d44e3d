// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The flow table is being replaced by one of another size: see ../migrate.go. Until all interfaces
 * have the programs that know of both tables, others that know of the former alone forward beside
 * them, so what is in it must stay, and what is new must get into it. */
#pragma once

#include "event.h"

/* bring copies an entry of former that is not in flows yet. It does not change what is there. */
static __always_inline int bring(const struct flow_key *key)
{
	struct flow *f = bpf_map_lookup_elem(&former, key);

	return f && !bpf_map_update_elem(&flows, key, f, BPF_NOEXIST);
}

/* bring_own does so for the packet at hand, in both directions, bring_reply for the reply tuple of the
 * binding at hand. They are global functions without arguments so that the verifier follows each
 * once. */
__attribute__((noinline)) int bring_own(void)
{
	struct packet *p = current_packet();
	struct flow_key okey;
	struct flow *f;

	if (!p || !bring(&p->key))
		return 0;
	f = bpf_map_lookup_elem(&flows, &p->key);
	if (!f)
		return 0;
	other_key(&okey, &p->key, f);
	bring(&okey);
	return 1;
}

__attribute__((noinline)) int bring_reply(void)
{
	struct binding *b = same_binding();

	return b ? bring(&b->rkey) : 0;
}

/* also_former writes an entry that flows has just got into former as well. */
static __noinline int also_former(const struct flow_key *key)
{
	struct flow *f = bpf_map_lookup_elem(&flows, key);

	return f ? bpf_map_update_elem(&former, key, f, BPF_ANY) : 0;
}
