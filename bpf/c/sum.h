// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Sums over the bytes of a packet, for what a difference cannot tell. */
#pragma once

#include "maps.h"

#define CHUNK 512      /* what bpf_csum_diff takes at once */
#define CHUNKS_MAX 18  /* a jumbo frame of 9000 bytes */

struct chunk {
	__u8 b[CHUNK + 4]; /* the verifier rounds a length up without regard to its bound */
};

/* What is summed at the moment: bpf_csum_diff reads from memory, not from a packet's fragments. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chunk);
} chunks SEC(".maps");

/* bytes_sum is the one's complement sum of length bytes at off; negative when they are more than
 * CHUNKS_MAX * CHUNK or not there. */
static __noinline __s64 bytes_sum(struct __sk_buff *skb, __u32 off, __u32 length)
{
	__u32 zero = 0, left = length, size, i;
	struct chunk *c = bpf_map_lookup_elem(&chunks, &zero);
	__s64 sum = 0;

	if (!c)
		return -1;
	for (i = 0; i < CHUNKS_MAX; i++) {
		if (!left)
			return sum;
		size = left < CHUNK ? left : CHUNK;
		/* The verifier of 6.1 learns no lower bound from "not zero", but from a sum. */
		size--;
		asm volatile("" : "+r"(size));
		size = (size & (CHUNK - 1)) + 1;
		/* The last word is padded with zeroes. */
		*(__u32 *)(c->b + ((size - 1) & (CHUNK - 4))) = 0;
		if (bpf_skb_load_bytes(skb, off, c->b, size))
			return -1;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)c->b, (size + 3) & ~3U, sum);
		if (sum < 0)
			return -1;
		off += size;
		left -= size;
	}
	return left ? -1 : sum;
}
