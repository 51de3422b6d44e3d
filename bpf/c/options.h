// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Options of IPv4 and TCP, which have one form: kind, length, value. */
#pragma once

#include "sum.h"

#define OPTIONS_MAX 40
#define OPTIONS_SEEN 16 /* no sender has more */
#define OPTIONS_MASK 63
#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_MSS 2
#define OPTION_LOOSE_ROUTE 131
#define OPTION_STRICT_ROUTE 137

struct option {
	__u8 kind;
	__u8 length;
	__u8 value[2];
};

/* find_option looks for an option of this kind among length bytes at off. It returns how far
 * behind off it begins, -1 when it is not there; at least four bytes of it are. */
static __noinline int find_option(struct __sk_buff *skb, __u32 off, __u32 length, __u32 kind)
{
	__u32 zero = 0, at, size;
	struct chunk *c = bpf_map_lookup_elem(&chunks, &zero);
	int i;

	if (!c || length < 4)
		return -1;
	/* clang makes one comparison of the two, on a copy; the verifiers of 6.1 and 6.12 then do
	 * not know the lower bound of the original. */
	asm volatile("" : "+r"(length));
	if (length > OPTIONS_MAX)
		return -1;
	__builtin_memset(c->b, 0, OPTIONS_MASK + 1);
	if (bpf_skb_load_bytes(skb, off, c->b, length))
		return -1;
	/* It is zero; but what the verifier does not know it need not follow byte by byte. */
	at = *(volatile __u8 *)&c->b[OPTIONS_MASK];
	for (i = 0; i < OPTIONS_SEEN; i++) {
		at &= OPTIONS_MASK;
		if (at + 4 > length || c->b[at] == OPTION_END)
			return -1;
		if (c->b[at] == kind)
			return at;
		size = c->b[at] == OPTION_NOP ? 1 : c->b[at + 1];
		if (size == 0 || size > OPTIONS_MAX)
			return -1;
		at += size;
	}
	return -1;
}
