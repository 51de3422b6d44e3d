// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Internet checksums (RFC 1071) and their differences (RFC 1624). */
#pragma once

#include "maps.h"

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u32 sum_words(const void *from, int words)
{
	const __u16 *w = from;
	__u32 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < words; i++)
		sum += w[i];
	return sum;
}

static __always_inline __u32 fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

/* addr_sum adds the words of an address; those of a mapped prefix only when v6 is set. */
static __always_inline __u64 addr_sum(const struct addr *a, int v6)
{
	__u64 sum = a->w[3];

	if (v6)
		sum += (__u64)a->w[0] + a->w[1] + a->w[2];
	return sum;
}

/* One's complement difference between two pairs of addresses of one family. */
static __always_inline __u32 addr_diff(const struct flow_key *from, const struct flow *to, int v6)
{
	__u64 less = addr_sum(&from->saddr, v6) + addr_sum(&from->daddr, v6);
	__u64 more = addr_sum(&to->new_saddr, v6) + addr_sum(&to->new_daddr, v6);

	/* -x in one's complement is ~x; eight words need their carries taken in first */
	return fold32(more + (__u32)~fold32(less));
}

/* RFC 1624, eqn. 3: the new checksum when diff is added to the words under it. */
static __always_inline __u16 csum_add(__u16 check, __u32 diff)
{
	return ~fold((__u64)(__u16)~check + diff);
}
