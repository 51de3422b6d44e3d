// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The half-open table: buckets of eight places in an array. A key has one bucket, by its hash; in a full one the
 * oldest that nobody has used since gives way. Compared with an LRU hash it saves the lists, and
 * what an insertion or a removal costs is one cache line or two. User space reads it and removes
 * from it through shared memory (../half.go has the other side of all this). */
#pragma once

#include "maps.h"

#define HALF_ALL ((1U << HALF_WAYS) - 1)
#define HALF_SPINS 32

/* half_fold multiplies the halves of a word, with a number added to each that nobody outside knows. */
static __always_inline __u64 half_fold(__u64 word, __u64 secret)
{
	return (__u64)((__u32)word + (__u32)secret) * (__u32)((word >> 32) + (secret >> 32));
}

/* half_hash adds up such products (NH, of UMAC: RFC 4418, 5.2), then mixes their bits. By what a
 * difference between two keys changes a product depends on the seed, so it cannot be foretold who shares a
 * bucket or a tag. With a word put in by exclusive or and multiplied by a constant it could: the
 * highest bit of a word always comes out as the same bits, which the next word can undo. */
static __always_inline __u64 half_hash(const struct flow_key *k)
{
	const __u64 *word = (const __u64 *)k;
	__u64 seed = cfg_half_seed, h;

	h = half_fold(word[0], seed * HALF_FACTOR_0) + half_fold(word[1], seed * HALF_FACTOR_1) +
	    half_fold(word[2], seed * HALF_FACTOR_2) + half_fold(word[3], seed * HALF_FACTOR_3) +
	    half_fold(word[4], seed * HALF_FACTOR_4);
	h = (h ^ h >> 32) * HALF_FACTOR;
	return h ^ h >> 32;
}

static __always_inline struct half_bucket *half_bucket_of(__u64 hash)
{
	__u32 at = (hash & 0xffffffff) * cfg_half_buckets >> 32;

	return bpf_map_lookup_elem(&half_open, &at);
}

/* The tag of a place that is taken is never zero. */
static __always_inline __u32 half_tag(__u64 hash)
{
	return hash >> 32 | 1;
}

/* half_ways returns the set of places with a tag, one bit for each. Without a branch: the verifier would
 * follow everything that comes after once for each place. */
static __always_inline __u64 half_ways(const struct half_bucket *b, __u32 tag)
{
	__u64 ways = 0;
	int i;

#pragma unroll
	for (i = 0; i < HALF_WAYS; i++)
		ways |= ((__u64)(b->tag[i] ^ tag) - 1) >> 63 << i;
	return ways;
}

/* half_first is the number of the lowest of eight bits, of which one is set: how many are below. */
static __always_inline __u32 half_first(__u64 ways)
{
	__u64 below = ((ways & -ways) - 1) & 0xff;

	below = (below & 0x55) + (below >> 1 & 0x55);
	below = (below & 0x33) + (below >> 2 & 0x33);
	return (below & 0x0f) + (below >> 4);
}

static __always_inline int half_same(const struct flow_key *a, const struct flow_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4]));
}

/* half_find returns the bucket that holds key, and the place in it. */
static __always_inline struct half_bucket *half_find(const struct flow_key *key, __u32 *way)
{
	__u64 hash = half_hash(key), ways;
	struct half_bucket *b = half_bucket_of(hash);

	if (!b)
		return NULL;
	ways = half_ways(b, half_tag(hash));
	if (!ways)
		return NULL;
	*way = half_first(ways) & (HALF_WAYS - 1);
	return half_same(&b->slot[*way].key, key) ? b : NULL;
}

/* half_lookup returns the entry of key. As with an LRU hash it may become another's while it is
 * looked at: no packet may be rewritten by it, nor an entry made of it (see half_copy). */
static __always_inline struct flow *half_lookup(const struct flow_key *key)
{
	__u32 way;
	struct half_bucket *b = half_find(key, &way);

	return b ? &b->slot[way].f : NULL;
}

/* half_version reads the version with everything before it read and everything after it not yet. */
static __always_inline __u32 half_version(const struct half_bucket *b)
{
	__u32 version, fence = 0;

	__sync_lock_test_and_set(&fence, 1); /* a barrier on every machine */
	version = *(const volatile __u32 *)&b->version;
	__sync_lock_test_and_set(&fence, 2);
	asm volatile("" ::: "memory");
	return version;
}

/* half_read copies the entry of key; 0: there is none, negative: something was put into the bucket
 * meanwhile. A CPU may be stopped at any point, by an interrupt or by the hypervisor for as long as it
 * likes, and the place be another's when it goes on, or that of a later connection of this key. */
static __always_inline int half_read(const struct half_bucket *b, const struct flow_key *key, __u32 tag,
				     struct flow *copy)
{
	__u32 version = half_version(b), way;
	__u64 ways = half_ways(b, tag);

	if (!ways)
		return 0;
	way = half_first(ways) & (HALF_WAYS - 1);
	if (!half_same(&b->slot[way].key, key))
		return version & 1 || half_version(b) != version ? -1 : 0;
	*copy = b->slot[way].f;
	return version & 1 || half_version(b) != version ? -1 : 1;
}

/* half_copy copies the entry of key into the place where the packet at hand makes one; NULL: it is not there, or
 * the bucket did not stand still for so long. */
static __noinline struct flow *half_copy(const struct flow_key *key)
{
	struct binding *made = same_binding();
	__u64 hash = half_hash(key);
	struct half_bucket *b = half_bucket_of(hash);
	int got;

	if (!made || !b)
		return NULL;
	/* Not as a loop: where the compiler has one begin right behind its last instruction, without a jump
	 * between them, verifiers before 6.7 refuse it (see TestLoopsAreClosedByJumps). */
	got = half_read(b, key, half_tag(hash), &made->v);
	if (got < 0)
		got = half_read(b, key, half_tag(hash), &made->v);
	if (got < 0)
		got = half_read(b, key, half_tag(hash), &made->v);
	if (got <= 0)
		return NULL;
	made->copied = 1;
	return &made->v;
}

/* half_use notes that the entry at a place is in use, or no more, so that it gives way last. */
static __always_inline void half_use(struct half_bucket *b, __u32 way, int used)
{
	__u32 bit = 1U << (way & (HALF_WAYS - 1));

	if (used && !(b->used & bit))
		__sync_fetch_and_or(&b->used, bit);
	else if (!used && (b->used & bit))
		__sync_fetch_and_and(&b->used, ~bit);
}

/* half_place chooses the place for a new entry: a free one, else in turn one that is not in use, else
 * in turn any. */
static __always_inline __u32 half_place(struct half_bucket *b)
{
	__u64 ways = half_ways(b, 0);
	__u32 from = b->next & (HALF_WAYS - 1), way;

	if (ways)
		return half_first(ways);
	ways = ~b->used & HALF_ALL;
	if (!ways)
		ways = HALF_ALL;
	way = half_first((ways | ways << HALF_WAYS) >> from & HALF_ALL) + from;
	b->next = way + 1;
	return way;
}

/* half_lock: whoever inserts has the bucket for itself, so a key cannot come in twice. Those who
 * only look do not wait, and nobody waits for long: a holder that the hypervisor has stopped, or a
 * kernel that interrupts packet processing, costs this packet and not the CPU. */
static __always_inline int half_lock(struct half_bucket *b)
{
	int i;

	for (i = 0; i < HALF_SPINS; i++)
		if (!__sync_lock_test_and_set(&b->lock, 1))
			return 0;
	return -EBUSY;
}

/* half_insert puts an entry in. With exclusive set it fails when there is one; so it does in the rare case of
 * two keys with one tag. It is a global function, which the verifier follows once by itself and not
 * in every state of its callers. */
__attribute__((noinline)) int half_insert(const struct flow_key *key, const struct flow *f,
					  int exclusive)
{
	__u32 tag, way, old;
	struct half_bucket *b;
	__u64 hash, ways;

	if (!key || !f)
		return -EBUSY;
	hash = half_hash(key);
	tag = half_tag(hash);
	b = half_bucket_of(hash);
	if (!b || half_lock(b))
		return -EBUSY;
	ways = half_ways(b, tag);
	if (ways && exclusive) {
		__sync_lock_test_and_set(&b->lock, 0);
		return -EEXIST;
	}
	way = (ways ? half_first(ways) : half_place(b)) & (HALF_WAYS - 1);
	/* Nobody finds the place while it is written; an exchange is a barrier on every machine. */
	(*(volatile __u32 *)&b->version)++;
	old = __sync_lock_test_and_set(&b->tag[way], 0);
	b->slot[way].key = *key;
	b->slot[way].f = *f;
	half_use(b, way, 0);
	__sync_lock_test_and_set(&b->tag[way], tag);
	(*(volatile __u32 *)&b->version)++;
	__sync_lock_test_and_set(&b->lock, 0);
	if (old && old != tag)
		count(COUNTER_HALF_EVICTED);
	return 0;
}

/* half_delete takes the entry of key out, if there is one. */
static __noinline int half_delete(const struct flow_key *key)
{
	__u32 way, tag = half_tag(half_hash(key));
	struct half_bucket *b = half_find(key, &way);

	if (b)
		__sync_val_compare_and_swap(&b->tag[way], tag, 0);
	return 0;
}
