/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ethernet and IP addresses, copied and compared word by word. */
#ifndef LBOPS_ADDRESS_H
#define LBOPS_ADDRESS_H

/* Both are at least as aligned as their words, which is more than memcpy assumes. */
static __always_inline void copy_mac(void *to, const void *from)
{
	__be16 *target = to;
	const __be16 *origin = from;

	target[0] = origin[0];
	target[1] = origin[1];
	target[2] = origin[2];
}

static __always_inline void copy_address(const int family, __be32 *to, const __be32 *from)
{
	to[0] = from[0];
	if (family == 6) {
		to[1] = from[1];
		to[2] = from[2];
		to[3] = from[3];
	}
}

static __always_inline int same_mac(const void *one, const void *other)
{
	const __be16 *left = one, *right = other;

	return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]));
}

/* All of an address in one word, for tables that are found by it. */
static __always_inline __u32 fold_address(const int family, const __be32 *address)
{
	return family == 4 ? address[0] : address[0] ^ address[1] ^ address[2] ^ address[3];
}

static __always_inline int same_address(const int family, const __be32 *one, const __be32 *other)
{
	if (family == 4)
		return one[0] == other[0];
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

#endif
