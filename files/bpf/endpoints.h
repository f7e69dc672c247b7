/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is addressed, or who answers: services and backends by address, protocol and port. */
#ifndef LBOPS_ENDPOINTS_H
#define LBOPS_ENDPOINTS_H

#include "address.h"
#include "layout.h"
#include "maps.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "endpoint keys are composed for little-endian machines"
#endif

/*
 * A hash map of the kernel costs a helper call, about 20 ns; these tables are reached through two inlined
 * array lookups, and a packet that is not ours mostly meets an empty slot first.
 */
static __always_inline void *endpoint_table(const int family)
{
	void *tables = family == 4 ? lookup(MAP_ENDPOINTS, 0) : lookup(MAP_ENDPOINTS6, 0);

	return tables ? lookup(tables, 0) : NULL;
}

/* The slot where the search for a key begins. The engine uses no more slots than there are; the mask is for the verifier. */
static __always_inline const struct endpoint *home4(const struct endpoint_table *table, __u64 key)
{
	return &table->slots[key * ENDPOINT_MULTIPLIER >> table->shift & (ENDPOINT_SLOTS - 1)];
}

static __always_inline const __u32 *find_endpoint4(const struct endpoint_table *table, __u64 key)
{
	const struct endpoint *slot = home4(table, key);
	int probe;

	for (probe = 0; probe < ENDPOINT_PROBES; probe++, slot++) {
		if (slot->key == key)
			return &slot->id;
		if (!slot->key)
			return NULL;
	}
	return NULL;
}

static __always_inline __u64 load64(const void *words)
{
	const __u32 *word = words;

	return (__u64)word[1] << 32 | word[0];
}

static __always_inline const struct endpoint6 *home6(const struct endpoint6_table *table, __u64 upper, __u64 lower,
						     __u32 key)
{
	__u64 hash = (upper ^ (__u64)key << 32) * ENDPOINT_MULTIPLIER;

	hash = (hash ^ hash >> 32 ^ lower) * ENDPOINT_MULTIPLIER;
	return &table->slots[hash >> table->shift & (ENDPOINT_SLOTS - 1)];
}

static __always_inline const __u32 *find_endpoint6(const struct endpoint6_table *table, __u64 upper, __u64 lower,
						   __u32 key)
{
	const struct endpoint6 *slot = home6(table, upper, lower, key);
	int probe;

	for (probe = 0; probe < ENDPOINT_PROBES; probe++, slot++) {
		if (!slot->key)
			return NULL;
		if (slot->key == key && slot->address[0] == upper && slot->address[1] == lower)
			return &slot->id;
	}
	return NULL;
}

/* The key without the address. */
static __always_inline __u64 endpoint_key(enum endpoint_kind kind, __u8 protocol, __be16 port)
{
	return (__u64)port << 32 | (__u64)protocol << 48 | (__u64)kind << 56;
}

/* The endpoint's id; NULL if there is none. */
static __always_inline const __u32 *find_endpoint(const int family, const void *table, enum endpoint_kind kind,
						  const __be32 *address, __u8 protocol, __be16 port)
{
	__u64 key = endpoint_key(kind, protocol, port);

	if (family == 4)
		return find_endpoint4(table, key | *address);
	return find_endpoint6(table, load64(address), load64(address + 2), key >> 32);
}

/* Whether a kind with this port can be there at all: most packets that are not ours end here, at the price of a shift. */
static __always_inline int may_have_port(__u64 ports, __be16 port)
{
	return ports >> (ntohs(port) & 63) & 1;
}

/* By its port, or else whatever the port. */
static __always_inline const __u32 *find_port_endpoint(const int family, const void *table, enum endpoint_kind kind,
						       const __be32 *address, __u8 protocol, __be16 port)
{
	/* Both tables begin alike. */
	const struct endpoint_table *header = table;
	const __u32 *id;

	if (!may_have_port(kind == ENDPOINT_SERVICE ? header->service_ports : header->backend_ports, port))
		return NULL;
	id = find_endpoint(family, table, kind, address, protocol, port);
#ifdef FEATURE_ANY_PORT
	if (!id)
		id = find_endpoint(family, table, kind, address, protocol, 0);
#endif
	return id;
}

/* Returns 0 if the Bloom filter rules out that the address is a VIP or a source of full_nat. */
static __always_inline int may_be_vip_or_source(const int family, const void *table, const __be32 *address)
{
	const struct endpoint_table *header = table;
	__u64 bit = fold_address(family, address) * ENDPOINT_MULTIPLIER >> 54;

	return header->address_bloom[bit >> 6] >> (bit & 63) & 1;
}

static __always_inline int is_vip(const int family, const void *table, const __be32 *address)
{
	return find_endpoint(family, table, ENDPOINT_VIP, address, IPPROTO_ICMP, 0) != NULL;
}

/* A VIP or a source of full_nat. */
static __always_inline int is_vip_or_source(const int family, const void *table, const __be32 *address)
{
#ifdef FEATURE_FULL_NAT
	if (find_endpoint(family, table, ENDPOINT_SOURCE, address, 0, 0))
		return 1;
#endif
	return is_vip(family, table, address);
}

#endif
