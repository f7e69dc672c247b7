/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What no service is there for, or cannot be read: mostly the kernel's. */
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

	return may_be_own(family, table, destination) && is_own(family, table, destination) &&
	       !is_neighbour_discovery(family, packet) && kernel_forwards(ctx, family, destination);
}

/* What no service is there for is the kernel's; so is a fragment whose first went unseen. */
static __always_inline int leave(hook_context *ctx, const int family, const struct packet *packet, const void *table,
				 int reason)
{
#ifndef FEATURE_UNSERVED_PASS
	if (table && would_loop(ctx, family, packet, table))
		return count_reason(packet->fragment == LATER_FRAGMENT ? DROP_FRAGMENT : DROP_VIP_UNSERVED, DROP);
#endif
	return count_reason(reason, PASS);
}

/*
 * What the program cannot read, filters cannot judge: it is dropped while there are some, so that nobody gets past them
 * by sending what the kernel or a backend reads otherwise.
 */
static __always_inline int pass_unread(enum reason pass, enum reason drop)
{
#ifdef FEATURE_FILTERS
	return count_reason(drop, DROP);
#else
	return count_reason(pass, PASS);
#endif
}

/* The same, of a packet whose addresses can be read; not ours is what can be read in full. */
static __always_inline int leave_unread(hook_context *ctx, const int family, const struct packet *packet,
					const void *table, int reason)
{
#ifdef FEATURE_FILTERS
	if (reason == PASS_MALFORMED)
		return count_reason(DROP_MALFORMED, DROP);
	if (reason == PASS_EXTENSION_HEADERS)
		return count_reason(DROP_EXTENSION_HEADERS, DROP);
#endif
	return leave(ctx, family, packet, table, reason);
}

#endif
