/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Martian sources: invalid or unforwardable addresses (RFC 6890), multicast, and the VIPs and sources of full_nat. A packet
 * from one VIP to another could loop forever between two services that answer everything. Documentation prefixes pass,
 * because labs use them.
 */
#ifndef LBOPS_MARTIAN_H
#define LBOPS_MARTIAN_H

#include "address.h"
#include "endpoints.h"
#include "packet.h"

/* 0.0.0.0/8, 127.0.0.0/8 and from 224.0.0.0 on; ::/96 with :: and ::1, ::ffff:0:0/96, ff00::/8 */
static __always_inline int is_invalid_source(const int family, const __be32 *source)
{
	__u32 first = ntohl(source[0]) >> 24;

	if (family == 4)
		return first - 1 >= 223 || first == 127;
	return first == 0xff || (!(source[0] | source[1]) && (!source[2] || source[2] == htonl(0xffff)));
}

/* Link-local addresses, and identifiers that are not addresses of hosts. */
static __always_inline int is_unforwardable_source(const int family, const __be32 *source)
{
	__u32 first = ntohl(source[0]), last = first & 0xff;

	/* fe80::/10, and 2001:10::/28 (RFC 4843) */
	if (family == 6)
		return first >> 22 == 0xfe80 >> 6 || first >> 4 == 0x2001001;
	/* 169.254.0.0/16; 192.0.0.0/24, but for 192.0.0.0/29 (RFC 7335), 192.0.0.9 (RFC 7723), 192.0.0.10 (RFC 8155) */
	return first >> 16 == 0xa9fe || (first >> 8 == 0xc00000 && (last > 10 || last == 8));
}

/* Not a source of ICMP errors. A router without a global address may send errors from unforwardable ones (RFC 7600). */
static __always_inline int is_martian_for_error(const int family, const struct packet *packet, const void *table)
{
	const __be32 *source = source_of(family, packet);

	return is_invalid_source(family, source) || same_address(family, source, destination_of(family, packet)) ||
	       (may_be_vip_or_source(family, table, source) && is_vip_or_source(family, table, source));
}

static __always_inline int is_martian(const int family, const struct packet *packet, const void *table)
{
	return is_unforwardable_source(family, source_of(family, packet)) || is_martian_for_error(family, packet, table);
}

#endif
