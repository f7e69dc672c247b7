/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend of a service gets the packet. */
#ifndef LBOPS_SELECT_H
#define LBOPS_SELECT_H

#include "layout.h"
#include "maps.h"
#include "parse.h"

/*
 * 32 bits from client address and both ports: two rounds of multiply and shift, the finalizer of MurmurHash3
 * (public domain) without its last shift, which only the low half would notice. Balancers that share a
 * configuration agree on it, so a packet may reach any of them.
 */
static __always_inline __u32 flow_hash(__be32 client, __be16 client_port, __be16 port)
{
	__u64 hash = (__u64)client << 32 | (__u32)client_port << 16 | port;

	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	return hash >> 32;
}

/* Multiplying maps 32 bits evenly onto the ring without a division. */
static __always_inline __u32 hashed_slot(__u32 hash)
{
	return (__u64)hash * RING_SIZE >> 32;
}

#ifdef FEATURE_ROUND_ROBIN
static __always_inline __u32 next_slot(__u32 service, __u32 length)
{
	__u32 *position = lookup(MAP_ROUND_ROBIN, service);
	__u32 slot;

	if (!position)
		return 0;
	slot = *position;
	/* A new ring may be shorter than the position reached in the old one. */
	if (slot >= length)
		slot = 0;
	*position = slot + 1;
	return slot;
}
#endif

static __always_inline struct backend *select_backend(__u32 service, const struct packet *packet, __u32 *id)
{
	void *rings = lookup(MAP_RINGS, service);
	struct ring *ring = rings ? lookup(rings, 0) : NULL;
	__u32 slot;

	if (!ring)
		return NULL;
#ifdef FEATURE_ROUND_ROBIN
	if (ring->scheduler == SCHEDULER_ROUND_ROBIN)
		slot = next_slot(service, ring->length);
	else
#endif
		slot = hashed_slot(flow_hash(packet->ip->saddr, packet->udp->source, packet->udp->dest));
	if (slot >= RING_SIZE)
		return NULL;
	*id = ring->slots[slot];
	/* Backend 0 is nobody: a ring without backends is all zeroes. */
	return *id ? lookup(MAP_BACKENDS, *id) : NULL;
}

#endif
