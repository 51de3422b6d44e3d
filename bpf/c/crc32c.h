// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* CRC32c (RFC 9260, appendix A) of a packet of which a few bytes have changed.
 *
 * Without its first and last inversion a CRC is linear: crc(a ^ b) = crc(a) ^ crc(b). So the
 * change of four bytes changes the sum by the CRC of those four, exclusive-ored, followed by as
 * many zeros as there are bytes behind them; whatever else is in the packet plays no part. A zero
 * byte multiplies the remainder by x^8 modulo the polynomial, n of them by x^(8n), which is the
 * product of the powers named by the nibbles of n. */
#pragma once

#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#define CRC32C_POLYNOMIAL 0x82f63b78 /* bit 31 is x^0, as everywhere here */

/* x^(8 * n * 16^i) for the i-th nibble n of a length. */
static const __u32 crc32c_power[4][16] = {
	{
		0x80000000, 0x00800000, 0x00008000, 0x00000080, 0x82f63b78, 0xfbc3faf9, 0x8b277743, 0x52a0c93f,
		0x6ea2d55c, 0x1c08b7d6, 0xf56e0ef4, 0x34019664, 0xa66805eb, 0x7a1f6b24, 0xe75d06aa, 0xc94ec098,
	},
	{
		0x80000000, 0x18b8ea18, 0x510ac59a, 0xb2dea967, 0xb82be955, 0x36c41f1c, 0x19b29a35, 0xc9e90b9e,
		0xb8fdb1e7, 0xe55ef1f3, 0x1fe0b5c3, 0xe0553f1e, 0x18e4a304, 0x2b830011, 0x56993a31, 0x0246e2e6,
	},
	{
		0x80000000, 0x88e56f72, 0x74c360a4, 0x631bb273, 0xe4172b16, 0x71892b1b, 0x835305c9, 0x196b1eae,
		0x0d65762a, 0xafc81338, 0xb5a50ab7, 0xf373c3ac, 0x5f60970f, 0xd46d3063, 0x3a5275ea, 0x02331c01,
	},
	{
		0x80000000, 0x35d73a62, 0x28461564, 0x43eefc9f, 0xbf455269, 0x5edcdeb9, 0x65059450, 0x4e6f41a4,
		0xe2ea32dc, 0xf5b95b32, 0x695a4c87, 0xf204502c, 0x9a4f01b6, 0x941a0916, 0x4303cb97, 0x4c3d3d65,
	},
};

/* Without a branch, as all here: the verifier follows one path, and no length takes longer. */
static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;
	int i;

	for (i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = (b >> 1) ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/* crc32c_shift returns the remainder crc after length more zero bytes, 65535 at most. */
static __noinline __u32 crc32c_shift(__u32 crc, __u32 length)
{
	int i;

	for (i = 0; i < 4; i++)
		crc = crc32c_multiply(crc32c_power[i][length >> 4 * i & 15], crc);
	return crc;
}

/* crc32c_update returns the sum of a packet whose first four bytes were from and are to, as they
 * are read from it; length: of the whole packet. */
static __always_inline __u32 crc32c_update(__u32 crc, __u32 from, __u32 to, __u32 length)
{
	return crc ^ crc32c_shift(from ^ to, length);
}
