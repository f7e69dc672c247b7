/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend of a service gets a new flow, or each packet: by hash or in turn. */
#ifndef LBOPS_SELECT_H
#define LBOPS_SELECT_H

#include "endpoints.h"
#include "layout.h"
#include "maps.h"

/* What tells flows to a service apart. */
struct flow {
	__be32 client[4];
	__be16 client_port;
	__be16 port;
};

/*
 * 64 bits from client address and both ports: two rounds of multiply and shift, the finalizer of MurmurHash3
 * (public domain) without its last shift, which only the low half would notice; an IPv6 address takes a round
 * more. Balancers that share a configuration agree on it, so a packet may reach any of them.
 */
static __always_inline __u64 flow_hash(const int family, const struct flow *flow)
{
	__u64 hash, ports = (__u32)flow->client_port << 16 | flow->port;

	if (family == 4) {
		hash = (__u64)flow->client[0] << 32 | ports;
	} else {
		hash = load64(flow->client);
		hash ^= hash >> 33;
		hash *= 0xff51afd7ed558ccdULL;
		hash ^= load64(flow->client + 2) ^ ports;
	}
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	return hash;
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

/* Multiplying maps 32 bits evenly onto the ring without a division. */
static __always_inline __u32 hashed_slot(const struct ring *ring, __u64 hash)
{
	return (hash >> 32) * ring->length >> 32;
}

/* The id of a backend; 0 is nobody: a ring without backends is all zeroes. */
static __always_inline __u32 backend_in_slot(const struct ring *ring, __u32 slot)
{
	return slot < RING_SIZE ? ring->slots[slot] : 0;
}

static __always_inline __u32 scheduled(__u32 service, const struct ring *ring, __u64 hash)
{
#ifdef FEATURE_ROUND_ROBIN
	if (ring->scheduler == SCHEDULER_ROUND_ROBIN)
		return backend_in_slot(ring, next_slot(service, ring->length));
#endif
	return backend_in_slot(ring, hashed_slot(ring, hash));
}

#endif
