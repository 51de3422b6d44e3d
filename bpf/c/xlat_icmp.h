// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What an ICMP error of one family is called in the other (RFC 7915, 4.2 and 5.2). */
#pragma once

#include "maps.h"

#define FIELD_ELSEWHERE 0xff /* a pointer to a field that the other header does not have */

/* The first eight bytes of an ICMP message. */
struct icmp_head {
	__u8 type;
	__u8 code;
	__be16 check;
	union {
		__be32 rest;
		__u8 b[4];
	};
};

/* The limits between which a told MTU must lie: the ways on both sides, as IPv6 sees them. */
static __always_inline __u32 least_mtu(__u32 told, __u32 a, __u32 b)
{
	if (a && a < told)
		told = a;
	return b && b < told ? b : told;
}

/* plateau guesses what an old router that tells no MTU meant (RFC 1191, 7.1), as far as it
 * matters above the least MTU of IPv6. */
static __always_inline __u32 plateau(__u32 length)
{
	if (length > 32000)
		return 32000;
	if (length > 17914)
		return 17914;
	if (length > 8166)
		return 8166;
	if (length > 4352)
		return 4352;
	if (length > 2002)
		return 2002;
	return length > 1492 ? 1492 : 1260;
}

/* pointer_to_v6 and pointer_to_v4 find the field of one header in the other. */
static __always_inline __u8 pointer_to_v6(__u8 at)
{
	if (at < 2)
		return at;
	if (at == 2 || at == 3)
		return 4;
	if (at == 8)
		return 7;
	if (at == 9)
		return 6;
	if (at >= 12 && at < 16)
		return 8;
	return at >= 16 && at < 20 ? 24 : FIELD_ELSEWHERE;
}

static __always_inline __u8 pointer_to_v4(__u32 at)
{
	if (at < 2)
		return at;
	if (at == 4 || at == 5)
		return 2;
	if (at == 6)
		return 9;
	if (at == 7)
		return 8;
	if (at >= 8 && at < 24)
		return 12;
	return at >= 24 && at < 40 ? 16 : FIELD_ELSEWHERE;
}

static __always_inline int set_icmp(struct icmp_head *h, __u8 type, __u8 code, __be32 rest)
{
	h->type = type;
	h->code = code;
	h->rest = rest;
	return 0;
}

/* unreachable_to_v6 translates the codes of type 3. */
static __always_inline int unreachable_to_v6(struct icmp_head *h)
{
	switch (h->code) {
	case 2: /* protocol: the next header field is wrong */
		return set_icmp(h, 4, 1, bpf_htonl(6));
	case 3: /* port */
		return set_icmp(h, 1, 4, 0);
	case 9: /* administratively prohibited, in three ways */
	case 10:
	case 13:
	case 15: /* precedence cut off */
		return set_icmp(h, 1, 1, 0);
	case 14: /* host precedence violation: IPv6 has none */
		return -1;
	}
	return h->code > 12 ? -1 : set_icmp(h, 1, 0, 0);
}

/* icmp_to_v6 changes the head of an error. The MTU of type 3 code 4 is left to the caller.
 * Negative: it cannot be said. */
static __noinline int icmp_to_v6(struct icmp_head *h)
{
	__u8 at;

	switch (h->type) {
	case 3:
		return unreachable_to_v6(h);
	case 11: /* time exceeded */
		return set_icmp(h, 3, h->code, 0);
	case 12: /* parameter problem */
		at = pointer_to_v6(h->b[0]);
		if ((h->code != 0 && h->code != 2) || at == FIELD_ELSEWHERE)
			return -1;
		return set_icmp(h, 4, 0, bpf_htonl(at));
	}
	return -1;
}

/* icmp_to_v4 is the way back. The MTU of type 2 is left to the caller. */
static __noinline int icmp_to_v4(struct icmp_head *h)
{
	__u32 at = bpf_ntohl(h->rest);
	__u8 to;

	switch (h->type) {
	case 1:
		if (h->code > 4)
			return -1;
		if (h->code == 1) /* administratively prohibited */
			return set_icmp(h, 3, 10, 0);
		return set_icmp(h, 3, h->code == 4 ? 3 : 1, 0);
	case 3:
		return set_icmp(h, 11, h->code, 0);
	case 4:
		if (h->code == 1) /* unknown next header: protocol unreachable */
			return set_icmp(h, 3, 2, 0);
		to = pointer_to_v4(at);
		if (h->code != 0 || to == FIELD_ELSEWHERE)
			return -1;
		return set_icmp(h, 12, 0, bpf_htonl((__u32)to << 24));
	}
	return -1;
}
