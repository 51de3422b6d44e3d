// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The extension headers of an IPv6 packet that an ICMP error quotes. */
#pragma once

#include "tc_forward.h"

/* Where the walk along them has got to. */
struct chain {
	__u32 off;  /* in the frame */
	__be32 id;  /* of a fragment */
	__u8 next;  /* what stands at off */
	__u8 fragment; /* there was a fragment header, of the first one of several or of one */
	__u8 more;
	__u8 pad;
};

/* follow_chain walks to the upper layer. Negative: it is not in there, because the packet is a later
 * fragment, still has places to visit (its addresses are not those of its flow), or is quoted in part. */
static __noinline int follow_chain(struct __sk_buff *skb, struct chain *c)
{
	struct extension e;
	int i;

	for (i = 0; i < EXTENSIONS_MAX; i++) {
		if (!is_extension(c->next))
			return 0;
		if (bpf_skb_load_bytes(skb, c->off, &e, sizeof(e)))
			return -1;
		c->off += sizeof(e);
		if (c->next == NEXT_FRAGMENT) {
			if (e.offset & bpf_htons(0xfff8))
				return -1;
			c->fragment = 1;
			c->more = bpf_ntohs(e.offset) & 1;
			c->id = e.id;
		} else {
			if (c->next == NEXT_ROUTING && e.offset & bpf_htons(0xff))
				return -1;
			c->off += e.length * 8;
		}
		c->next = e.next;
	}
	return is_extension(c->next) ? -1 : 0;
}
