// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* SCTP (RFC 9260): chunks said in the terms of TCP, so that one state machine serves both. */
#pragma once

#include "crc32c.h"
#include "maps.h"

struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__le32 checksum;
};

struct sctp_chunk {
	__u8 type;
	__u8 flags;
	__be16 length; /* without padding */
};

enum sctp_type {
	SCTP_DATA = 0,
	SCTP_INIT = 1,
	SCTP_INIT_ACK = 2,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN = 7,
	SCTP_SHUTDOWN_ACK = 8,
	SCTP_COOKIE_ECHO = 10,
	SCTP_COOKIE_ACK = 11,
	SCTP_SHUTDOWN_COMPLETE = 14,
	SCTP_I_DATA = 64, /* RFC 8260 */
};

#define SCTP_CHUNKS_MAX 6
#define SCTP_INIT_LENGTH 20 /* of INIT and INIT ACK, at least */

/* Both ports as they lie in the packet. */
static __always_inline __u32 port_pair(__be16 sport, __be16 dport)
{
	return (__u32)dport << 16 | sport;
}

/* sctp_terms says what a chunk means to the state machine. COOKIE ECHO ends the handshake like
 * the last ACK, and COOKIE ACK answers it; each side says once that it sends no more data, by SHUTDOWN or SHUTDOWN ACK;
 * nobody says anything after SHUTDOWN COMPLETE or ABORT. The others change nothing. */
static __always_inline __u8 sctp_terms(__u8 type)
{
	switch (type) {
	case SCTP_INIT:
		return TCP_SYN;
	case SCTP_INIT_ACK:
		return TCP_SYN | TCP_ACK;
	case SCTP_COOKIE_ECHO:
	case SCTP_COOKIE_ACK:
		return TCP_ACK;
	case SCTP_SHUTDOWN:
	case SCTP_SHUTDOWN_ACK:
		return TCP_FIN;
	case SCTP_SHUTDOWN_COMPLETE:
	case SCTP_ABORT:
		return TCP_RST;
	}
	return 0;
}

/* These come alone (RFC 9260, 6.10). */
static __always_inline int sctp_alone(__u8 type)
{
	return type == SCTP_INIT || type == SCTP_INIT_ACK || type == SCTP_SHUTDOWN_COMPLETE;
}

/* sctp_chunk_bad judges the chunk at offset off of a packet with the given tag. */
static __always_inline int sctp_chunk_bad(const struct sctp_chunk *c, const struct packet *p,
					  __u32 off, __be32 tag)
{
	__u32 length = bpf_ntohs(c->length), left = p->payload - off;
	int alone = sctp_alone(c->type);

	if (length < sizeof(*c))
		return 1;
	/* A first fragment need not have all of it. */
	if (length > left && !(p->flags & PACKET_F_FIRST))
		return 1;
	if (alone && (off > sizeof(struct sctp_header) || ((length + 3) & ~3U) < left))
		return 1;
	if ((c->type == SCTP_INIT || c->type == SCTP_INIT_ACK) && length < SCTP_INIT_LENGTH)
		return 1;
	/* RFC 9260, 8.5.1: INIT, and INIT only, has no tag yet. */
	return (c->type == SCTP_INIT) != !tag;
}

/* sctp_chunks walks the first chunks. Control chunks come before data (RFC 9260, 6.10), so
 * nothing is missed by ending there. Returns 0 when the packet contradicts itself. */
static __noinline int sctp_chunks(struct sctp_header *h, void *end, struct packet *p)
{
	__u32 off = sizeof(*h);
	struct sctp_chunk *c;
	int i;

	for (i = 0; i < SCTP_CHUNKS_MAX; i++) {
		off &= 0x1ff;
		c = (void *)h + off;
		if ((void *)(c + 1) > end)
			return i || p->flags & PACKET_F_FIRST; /* further than we look, or cut off */
		if (sctp_chunk_bad(c, p, off, h->tag))
			return 0;
		p->tcp_flags |= sctp_terms(c->type);
		if (c->type == SCTP_DATA || c->type == SCTP_I_DATA)
			return 1;
		off += (bpf_ntohs(c->length) + 3) & ~3U;
		if (off + sizeof(*c) > p->payload || off > 0x1ff)
			return 1;
	}
	return 1;
}

/* parse_sctp reads the ports and what the chunks mean. Returns 0 when the packet contradicts
 * itself. */
static __always_inline int parse_sctp(struct sctp_header *h, void *end, struct packet *p)
{
	if ((void *)(h + 1) > end || p->payload < sizeof(*h) + sizeof(struct sctp_chunk))
		return 0;
	if (!h->source || !h->dest) /* RFC 9260, 3.1 */
		return 0;
	p->key.sport = h->source;
	p->key.dport = h->dest;
	return sctp_chunks(h, end, p);
}

/* sctp_sum returns the checksum after the ports have changed; it covers them, but not the
 * addresses (RFC 9260, 6.8). */
static __always_inline __le32 sctp_sum(const struct sctp_header *h, __u32 from, __u32 to, __u32 length)
{
	return crc32c_update(h->checksum, from, to, length);
}

/* sctp_cut: the checksum of this first fragment cannot be corrected for the ports, because the length of
 * the whole packet, and so the weight of their change, is not known. */
static __always_inline int sctp_cut(const struct packet *p, __u32 ports)
{
	return p->key.proto == IPPROTO_SCTP && p->flags & PACKET_F_FIRST &&
	       port_pair(p->key.sport, p->key.dport) != ports;
}

/* tc_fix_sctp corrects the checksum for the ports that are about to be written. Where the kernel has
 * yet to write it, because a socket of this machine sent the packet or offload has gathered several,
 * it writes the right one over ours. */
static __always_inline int tc_fix_sctp(struct __sk_buff *skb, const struct packet *p, __u32 ports)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct sctp_header *h = data + (p->l4_off & 0x1ff);
	__u32 before = port_pair(p->key.sport, p->key.dport), old;

	if (before == ports || p->flags & PACKET_F_BODY)
		return 0;
	if (p->flags & PACKET_F_FIRST || (void *)(h + 1) > end)
		return -1;
	old = h->checksum;
	h->checksum = sctp_sum(h, before, ports, p->payload);
	/* The ports will be written by who called. */
	bpf_csum_update(skb, fold32((__u64)h->checksum + (__u32)~old + ports + (__u32)~before));
	return 0;
}
