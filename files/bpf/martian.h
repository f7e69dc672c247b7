/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sources that nothing is forwarded or answered for: what RFC 6890 has as no source or not to be forwarded, multicast, and
 * the addresses that packets are balanced for. A packet from a VIP to a VIP could go round for ever: two services that
 * answer everything would talk to each other. The prefixes of documentation pass, labs use them.
 */
#ifndef LBOPS_MARTIAN_H
#define LBOPS_MARTIAN_H

#include "address.h"
#include "endpoints.h"
#include "packet.h"

static __always_inline int is_martian4(__be32 source)
{
	__u32 address = ntohl(source), first = address >> 24, last = address & 0xff;

	/* 0.0.0.0/8 and from 224.0.0.0 on; 127.0.0.0/8; 169.254.0.0/16 */
	if (first - 1 >= 223 || first == 127 || address >> 16 == 0xa9fe)
		return 1;
	/* 192.0.0.0/24, but for 192.0.0.0/29 (RFC 7335), 192.0.0.9 (RFC 7723) and 192.0.0.10 (RFC 8155) */
	return address >> 8 == 0xc00000 && (last > 10 || last == 8);
}

static __always_inline int is_martian6(const __be32 *source)
{
	__u32 first = ntohl(source[0]);

	/* ff00::/8, fe80::/10, and 2001:10::/28 (RFC 4843) */
	if (first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 || first >> 4 == 0x2001001)
		return 1;
	/* ::/96 with :: and ::1, and ::ffff:0:0/96 */
	return !(source[0] | source[1]) && (!source[2] || source[2] == htonl(0xffff));
}

static __always_inline int is_martian(const int family, const struct packet *packet, const void *table)
{
	const __be32 *source = source_of(family, packet);

	if (family == 4 ? is_martian4(*source) : is_martian6(source))
		return 1;
	if (same_address(family, source, destination_of(family, packet)))
		return 1;
	return may_be_own(family, table, source) && is_own(family, table, source);
}

#endif
