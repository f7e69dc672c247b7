/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is addressed, or who answers: services and backends by address, protocol and port. */
#ifndef LBOPS_ENDPOINTS_H
#define LBOPS_ENDPOINTS_H

#include "layout.h"
#include "maps.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "endpoint keys are composed for little-endian machines"
#endif

static __always_inline __u64 endpoint_key(enum endpoint_kind kind, __be32 address, __u8 protocol, __be16 port)
{
	return address | (__u64)port << 32 | (__u64)protocol << 48 | (__u64)kind << 56;
}

/*
 * A hash map of the kernel costs a helper call, about 20 ns; this table is reached through two inlined
 * array lookups, and a packet that is not ours mostly meets an empty slot first.
 */
static __always_inline struct endpoint_table *endpoint_table(void)
{
	void *tables = lookup(MAP_ENDPOINTS, 0);

	return tables ? lookup(tables, 0) : NULL;
}

static __always_inline struct endpoint *endpoint_lookup(struct endpoint_table *table, __u64 key)
{
	__u64 home = key * ENDPOINT_MULTIPLIER >> table->shift;
	/* The engine never uses more slots than there are; the mask is for the verifier. */
	struct endpoint *slot = &table->slots[home & (ENDPOINT_SLOTS - 1)];
	int probe;

	for (probe = 0; probe < ENDPOINT_PROBES; probe++, slot++) {
		if (slot->key == key)
			return slot;
		if (!slot->key)
			return NULL;
	}
	return NULL;
}

#endif
