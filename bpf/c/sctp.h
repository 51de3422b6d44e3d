// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* SCTP (RFC 9260): chunks said in the terms of TCP, so that one state machine serves both. */
#pragma once

#include "maps.h"

struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum;
};

/* Both ports as they lie in the packet. */
static __always_inline __u32 port_pair(__be16 sport, __be16 dport)
{
	return (__u32)dport << 16 | sport;
}

struct sctp_chunk {
	__u8 type;
	__u8 flags;
	__be16 length;
};

static __always_inline int parse_sctp(void *l4, void *end, struct packet *p)
{
	struct sctp_header *h = l4;

	if ((void *)(h + 1) > end)
		return V_PASS;
	p->key.sport = h->source;
	p->key.dport = h->dest;
	return V_CONTINUE;
}

/* The checksum covers the ports but not the addresses (RFC 9260, 6.8). */
static __always_inline int tc_fix_sctp(struct __sk_buff *skb, const struct packet *p, __u32 ports)
{
	return port_pair(p->key.sport, p->key.dport) == ports ? 0 : -1;
}
