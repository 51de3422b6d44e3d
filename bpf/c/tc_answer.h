// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the sender of a packet is told about it: a reset (TCP), an abort (SCTP) or an ICMP error.
 * The answer is made of the packet itself and goes back the way it came. */
#pragma once

#include "tc_icmp_error.h"

/* has_single_source: a source that one host answers to (RFC 1122, 3.2.2; RFC 4443, 2.4 e.6). */
static __always_inline int has_single_source(const struct packet *p)
{
	const struct addr *a = &p->key.saddr;

	if (is_v4(a))
		return a->b[12] != 0 && a->b[12] != 127 && a->b[12] < 224;
	return a->b[0] != 0xff && (a->d[0] || a->w[2] || a->w[3] & ~bpf_htonl(1));
}

/* may_answer: not to a later fragment, and not to what is itself an answer. */
static __always_inline int may_answer(const struct packet *p)
{
	return p->kind == KIND_FLOW && !(p->flags & (PACKET_F_LATER | PACKET_F_BODY)) &&
	       has_single_source(p);
}

/* turn_link has the frame go back to where it came from. */
static __always_inline int turn_link(struct __sk_buff *skb)
{
	__u8 mac[2 * ETH_ALEN], turned[2 * ETH_ALEN];

	if (bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		return -1;
	__builtin_memcpy(turned, mac + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(turned + ETH_ALEN, mac, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, turned, sizeof(turned), 0);
}

/* reshape leaves of the packet a bare IP header and room for size bytes. The options go out from
 * between the headers: a partial checksum is completed where the old L4 header began, and so the
 * new one must begin there, too. */
static __noinline int reshape(struct __sk_buff *skb, const struct packet *p, __u32 size)
{
	int options = p->l4_off - p->l3_off - ip_size(p);

	if (options && bpf_skb_adjust_room(skb, -options, BPF_ADJ_ROOM_NET, 0))
		return -1;
	if (bpf_skb_change_tail(skb, p->l3_off + ip_size(p) + size, 0))
		return -1;
	return turn_link(skb);
}

/* Sequence numbers as RFC 9293, 3.10.7.1 asks of a reset from the CLOSED state. */
static __always_inline void reset_numbers(struct tcphdr *to, const struct tcphdr *from, __u32 payload)
{
	to->rst = 1;
	if (from->ack) {
		to->seq = from->ack_seq;
		return;
	}
	to->ack = 1;
	to->ack_seq = bpf_htonl(bpf_ntohl(from->seq) + payload + from->syn + from->fin);
}

static __noinline int answer_tcp(struct __sk_buff *skb, const struct packet *p)
{
	__u32 check = p->l4_off + offsetof(struct tcphdr, check), at = p->l3_off + ip_size(p);
	struct tcphdr in = {}, out = {};
	int partial, payload;
	__u64 pseudo;

	if (p->tcp_flags & TCP_RST)
		return SILENT;
	if (bpf_skb_load_bytes(skb, p->l4_off, &in, sizeof(in)))
		return -1;
	payload = p->payload - in.doff * 4;
	if (payload < 0)
		return -1;
	partial = is_partial(skb, check);
	if (reshape(skb, p, sizeof(out)))
		return -1;
	out.source = in.dest;
	out.dest = in.source;
	out.doff = sizeof(out) / 4;
	reset_numbers(&out, &in, payload);
	pseudo = pseudo_sum(p, IPPROTO_TCP, sizeof(out));
	if (partial)
		out.check = fold(pseudo);
	else
		out.check = ~fold(pseudo + sum_words(&out, sizeof(out) / 2));
	if (put_ip(skb, p, sizeof(out), IPPROTO_TCP, BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_skb_store_bytes(skb, at, &out, sizeof(out), BPF_F_RECOMPUTE_CSUM);
}

struct sctp_answer {
	struct sctp_header header;
	struct sctp_chunk chunk;
};

#define SCTP_TAG_REFLECTED 1

static const __u32 crc32c_nibble[16] = {
	0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
	0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
	0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
	0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

/* crc32c of a few bytes (RFC 9260, appendix A), by half bytes: a loop over bits costs the
 * verifier five times as much, on each of the many ways that lead here. */
static __noinline __u32 crc32c_short(const struct sctp_answer *a)
{
	const __u8 *bytes = (const __u8 *)a;
	__u32 crc = ~0U, i;

	for (i = 0; i < sizeof(*a); i++) {
		crc ^= bytes[i];
		crc = crc >> 4 ^ crc32c_nibble[crc & 15];
		crc = crc >> 4 ^ crc32c_nibble[crc & 15];
	}
	return ~crc;
}

/* answer_sctp speaks as RFC 9260, 8.4 asks of one who does not know the association. */
static __noinline int answer_sctp(struct __sk_buff *skb, const struct packet *p)
{
	__u32 at = p->l3_off + ip_size(p);
	struct sctp_answer in = {}, out = {};
	__be32 init_tag = 0;

	if (bpf_skb_load_bytes(skb, p->l4_off, &in, sizeof(in)))
		return -1;
	if (in.chunk.type == SCTP_ABORT || in.chunk.type == SCTP_SHUTDOWN_COMPLETE)
		return SILENT;
	out.header.source = in.header.dest;
	out.header.dest = in.header.source;
	out.header.tag = in.header.tag;
	out.chunk.type = in.chunk.type == SCTP_SHUTDOWN_ACK ? SCTP_SHUTDOWN_COMPLETE : SCTP_ABORT;
	out.chunk.flags = SCTP_TAG_REFLECTED;
	out.chunk.length = bpf_htons(sizeof(out.chunk));
	if (in.chunk.type == SCTP_INIT) {
		if (bpf_skb_load_bytes(skb, p->l4_off + sizeof(in), &init_tag, sizeof(init_tag)))
			return -1;
		out.header.tag = init_tag;
		out.chunk.flags = 0;
	}
	/* A partial checksum is computed anew on transmission, whatever stands here. */
	out.header.checksum = crc32c_short(&out);
	if (reshape(skb, p, sizeof(out)))
		return -1;
	if (put_ip(skb, p, sizeof(out), IPPROTO_SCTP, BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_skb_store_bytes(skb, at, &out, sizeof(out), BPF_F_RECOMPUTE_CSUM);
}

/* answer_error quotes the packet in an ICMP error. */
static __noinline int answer_error(struct __sk_buff *skb, const struct packet *p, __u32 error,
				   __u32 number)
{
	__u32 quote = (p->l4_off - p->l3_off + p->payload) & QUOTE_LENGTH;
	int partial;

	if (!error_allowed(p)) {
		count(COUNTER_ANSWER_LIMITED);
		return SILENT;
	}
	partial = is_partial(skb, p->l4_off + check_offset(p));
	/* What will stand in a quoted CRC is not known before transmission. */
	if (partial && p->key.proto == IPPROTO_SCTP)
		return SILENT;
	if (insert_error_headers(skb, p))
		return -1;
	return put_error(skb, p, error, number, partial ? quote | QUOTE_PARTIAL : quote);
}

static __always_inline int tc_refuse(struct __sk_buff *skb, const struct packet *p)
{
	if (p->key.proto == IPPROTO_TCP)
		return answer_tcp(skb, p);
	if (p->key.proto == IPPROTO_SCTP)
		return answer_sctp(skb, p);
	return answer_error(skb, p, p->flags & PACKET_F_V6 ? ICMP6_PORT_UNREACHABLE : ICMP_PORT_UNREACHABLE, 0);
}

/* tc_answer says what skb->cb asks for (see enum answer). It counts the reason of all but
 * ANSWER_REFUSE, which has many. */
static __always_inline int tc_answer(struct __sk_buff *skb, const struct packet *p)
{
	__u32 what = skb->cb[0], number = skb->cb[1], sent = COUNTER_REFUSED;
	int v6 = p->flags & PACKET_F_V6, err;

	if (what == ANSWER_TOO_BIG) {
		count(DROP_FRAG_NEEDED);
		sent = COUNTER_TOO_BIG;
	} else if (what == ANSWER_EXPIRED) {
		count(DROP_TTL);
		sent = COUNTER_EXPIRED;
	}
	if (!may_answer(p))
		return TC_ACT_SHOT;
	if (what == ANSWER_TOO_BIG)
		err = answer_error(skb, p, v6 ? ICMP6_TOO_BIG : ICMP_TOO_BIG, number);
	else if (what == ANSWER_EXPIRED)
		err = answer_error(skb, p, v6 ? ICMP6_EXPIRED : ICMP_EXPIRED, 0);
	else
		err = tc_refuse(skb, p);
	if (err < 0)
		return tc_drop(DROP_REWRITE);
	if (err == SILENT)
		return TC_ACT_SHOT;
	count(sent);
	return bpf_redirect(skb->ifindex, 0);
}
