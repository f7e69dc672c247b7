/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that match no service or cannot be parsed. Most of them pass to the kernel. */
#ifndef LBOPS_NOT_OURS_H
#define LBOPS_NOT_OURS_H

#include "count.h"
#include "endpoints.h"
#include "next_hop.h"
#include "packet.h"
#include "parse.h"
#include "reasons.h"

/* Of routers and neighbours on the link (RFC 4861), for an address that the host may answer for as a proxy. */
static __always_inline int is_neighbour_discovery(const int family, const struct packet *packet)
{
	return family == 6 && packet->protocol == IPPROTO_ICMPV6 && !packet->fragment && has_l4(packet) &&
	       packet->icmp->type >= 133 && packet->icmp->type <= 137 && *hop_limit(family, packet) == 255;
}

/*
 * Whether the kernel would forward the packet instead of taking it: for a VIP or a source of full_nat that is no address
 * of this host. The kernel would send it to the router that it came from, which would send it here again.
 */
static __always_inline int would_loop(hook_context *ctx, const int family, const struct packet *packet,
				      const void *table)
{
	const __be32 *destination = destination_of(family, packet);

	return may_be_vip_or_source(family, table, destination) && is_vip_or_source(family, table, destination) &&
	       !is_neighbour_discovery(family, packet) && kernel_forwards(ctx, family, destination);
}

/* Passes a packet for this reason, or drops it if the kernel would send it back. */
static __always_inline int pass_unless_loop(hook_context *ctx, const int family, const struct packet *packet,
					    const void *table, int reason)
{
#ifndef FEATURE_UNSERVED_PASS
	if (table && would_loop(ctx, family, packet, table)) {
		if (reason == PASS_REPLY_UNVERIFIED)
			return with_reason(DROP_REPLY_UNVERIFIED, DROP);
		return with_reason(packet->fragment == LATER_FRAGMENT ? DROP_FRAGMENT : DROP_VIP_UNSERVED, DROP);
	}
#endif
	return with_reason(reason, PASS);
}

/*
 * Filters cannot judge what the program cannot parse, so it is dropped while filters are in use: the kernel or a backend
 * might parse it differently. Otherwise it passes.
 */
static __always_inline int pass_unless_filters(enum reason pass, enum reason drop)
{
#ifdef FEATURE_FILTERS
	return with_reason(drop, DROP);
#else
	return with_reason(pass, PASS);
#endif
}

/* Handles a packet with readable addresses that parse_ip() returned a reason for. */
static __always_inline int handle_unparsed(hook_context *ctx, const int family, const struct packet *packet,
					   const void *table, int reason)
{
#ifdef FEATURE_FILTERS
	if (reason == PASS_MALFORMED)
		return with_reason(DROP_MALFORMED, DROP);
	if (reason == PASS_EXTENSION_HEADERS)
		return with_reason(DROP_EXTENSION_HEADERS, DROP);
#endif
	return pass_unless_loop(ctx, family, packet, table, reason);
}

#endif
