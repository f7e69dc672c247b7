/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sources that nothing is forwarded or answered for. */
#ifndef LBOPS_MARTIAN_H
#define LBOPS_MARTIAN_H

#include "address.h"
#include "packet.h"

/* No host on a network sends from such an address (RFC 6890); nor does the VIP send to itself. */
static __always_inline int is_martian(const int family, const struct packet *packet)
{
	const __be32 *source = source_of(family, packet);
	__u8 first = *(const __u8 *)source;

	if (family == 4)
		return first == 0 || first == 127 || first >= 224 || *source == packet->ip->daddr;
	if (first == 0xff || same_address(family, source, destination_of(family, packet)))
		return 1;
	return !(source[0] | source[1] | source[2] | (source[3] & ~htonl(1)));
}

#endif
