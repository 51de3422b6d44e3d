// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the XDP hook has to know of interfaces; the TC hook is told by the kernel. */
#pragma once

#include "maps.h"

/* get_station returns what user space says of an interface; NULL when it says nothing. */
static __always_inline const struct station *get_station(__u32 ifindex)
{
	__u32 slot = ifindex % STATIONS;
	const struct station *s = bpf_map_lookup_elem(&stations, &slot);

	return s && s->ifindex == ifindex ? s : NULL;
}

static __always_inline int is_mine(const struct station *s, const __u8 *dest)
{
	const __u16 *a = (const __u16 *)s->mac, *b = (const __u16 *)dest;

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]));
}
