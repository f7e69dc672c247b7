/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which clients a service takes packets from: prefixes of its own, in a trie for all services. */
#ifndef LBOPS_SOURCE_RANGES_H
#define LBOPS_SOURCE_RANGES_H

#include "layout.h"
#include "maps.h"
#include "select.h"
#include "verifier.h"

#ifdef FEATURE_SOURCE_RANGES
/* `bits`: of the address, the halves of which are as they lie in the packet. */
GLOBAL_SUBPROGRAM __u64 is_in_source_range(__u64 service, __u64 bits, __u64 upper, __u64 lower);
#endif

/* Whether the service takes packets from the client of the flow. Services without ranges take them from anyone. */
static __always_inline int may_use(const int family, __u32 service, const struct lookup_table *rules,
				   const struct flow *flow)
{
#ifdef FEATURE_SOURCE_RANGES
	if (rules->flags & SERVICE_SOURCE_RANGES)
		return is_in_source_range(service, family == 4 ? 32 : 128, upper_half(family, flow),
					  lower_half(family, flow));
#endif
	return 1;
}

#endif
