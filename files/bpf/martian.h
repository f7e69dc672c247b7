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

/* 0.0.0.0/8, 127.0.0.0/8 and from 224.0.0.0 on; ::/96 with :: and ::1, ::ffff:0:0/96, ff00::/8 */
static __always_inline int is_no_source(const int family, const __be32 *source)
{
	__u32 first = ntohl(source[0]) >> 24;

	if (family == 4)
		return first - 1 >= 223 || first == 127;
	return first == 0xff || (!(source[0] | source[1]) && (!source[2] || source[2] == htonl(0xffff)));
}

/* What has a meaning on its link only, and what stands for no host. */
static __always_inline int is_unroutable(const int family, const __be32 *source)
{
	__u32 first = ntohl(source[0]), last = first & 0xff;

	/* fe80::/10, and 2001:10::/28 (RFC 4843) */
	if (family == 6)
		return first >> 22 == 0xfe80 >> 6 || first >> 4 == 0x2001001;
	/* 169.254.0.0/16; 192.0.0.0/24, but for 192.0.0.0/29 (RFC 7335), 192.0.0.9 (RFC 7723), 192.0.0.10 (RFC 8155) */
	return first >> 16 == 0xa9fe || (first >> 8 == 0xc00000 && (last > 10 || last == 8));
}

/* Nobody sends an ICMP error from there. A router without another address may from an unroutable one (RFC 7600). */
static __always_inline int is_no_sender(const int family, const struct packet *packet, const void *table)
{
	const __be32 *source = source_of(family, packet);

	return is_no_source(family, source) || same_address(family, source, destination_of(family, packet)) ||
	       (may_be_own(family, table, source) && is_own(family, table, source));
}

static __always_inline int is_martian(const int family, const struct packet *packet, const void *table)
{
	return is_unroutable(family, source_of(family, packet)) || is_no_sender(family, packet, table);
}

#endif
