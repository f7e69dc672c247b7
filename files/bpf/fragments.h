/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Only a packet's first fragment has the ports. Network cards spread fragments by addresses alone, so the others come
 * to the same CPU; there they follow the first by source, destination and identification, over IPv4 also by protocol
 * (RFC 791, section 3.2; RFC 8200, section 4.5: the next header of fragments of one packet may differ).
 */
#ifndef LBOPS_FRAGMENTS_H
#define LBOPS_FRAGMENTS_H

#include "endpoints.h"
#include "flow_table.h"
#include "packet.h"

#define FRAGMENT_TIMEOUT 2 /* ticks */

static __always_inline __u64 fragment_signature(const int family, const struct packet *packet)
{
	const __be32 *source = source_of(family, packet), *destination = destination_of(family, packet);
	__u64 hash = (__u64)source[0] << 32 | destination[0];

	/* One address after the other: XORed at once, differences in two of them could cancel each other out. */
	if (family == 6) {
		hash = load64(source) * ENDPOINT_MULTIPLIER;
		hash = (hash ^ hash >> 32 ^ load64(source + 2)) * ENDPOINT_MULTIPLIER;
		hash = (hash ^ hash >> 32 ^ load64(destination)) * ENDPOINT_MULTIPLIER;
		hash ^= hash >> 32 ^ load64(destination + 2);
	}
	hash *= ENDPOINT_MULTIPLIER;
	return flow_signature(hash ^ hash >> 32 ^ packet->identification, family == 4 ? packet->protocol : 0);
}

static __always_inline void remember_fragment(const int family, const struct packet *packet, __u32 number)
{
	__u64 signature = fragment_signature(family, packet);
	struct flow_bucket *bucket = lookup(MAP_FRAGMENTS, signature >> FRAGMENT_SHIFT);
	__u32 now = clock_ticks();
	__u64 *place;

	if (!bucket)
		return;
	place = find_flow(bucket, signature);
	if (!place)
		place = place_for_flow(bucket, FRAGMENT_TIMEOUT, now);
	if (place)
		*place = flow_entry(cut_signature(signature), FLOW_NEW, number, now);
}

/* The number that the first fragment was remembered with; 0 if none was. */
static __always_inline __u32 recall_fragment(const int family, const struct packet *packet)
{
	__u64 signature = fragment_signature(family, packet), *known;
	struct flow_bucket *bucket = lookup(MAP_FRAGMENTS, signature >> FRAGMENT_SHIFT);
	__u32 now = clock_ticks(), number;

	known = bucket ? find_flow(bucket, signature) : NULL;
	if (!known)
		return 0;
	number = recall_flow(*known, FRAGMENT_TIMEOUT, now);
	if (number)
		see_flow(known, FLOW_NEW, now);
	return number;
}

#endif
