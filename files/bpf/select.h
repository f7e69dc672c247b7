/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend of a service gets a new flow, or each packet: by hash or in turn. */
#ifndef LBOPS_SELECT_H
#define LBOPS_SELECT_H

#include "endpoints.h"
#include "layout.h"
#include "maps.h"
#include "multiply.h"
#include "packet.h"
#include "verifier.h"

/* The balancers of a fleet share it, and nobody else knows it. 0: there is none, and the hash is public. */
#ifndef HASH_SEED
#define HASH_SEED 0
#endif

/* What tells flows to a service apart. */
struct flow {
	__be32 client[4];
	__be16 client_port;
	__be16 port;
};

/* Of a packet to a service. */
static __always_inline void flow_of(const int family, const struct packet *packet, struct flow *flow)
{
	copy_address(family, flow->client, source_of(family, packet));
	flow->client_port = packet->udp->source;
	flow->port = packet->udp->dest;
}

/*
 * 64 bits from client address and both ports: two rounds of multiply and shift, the finalizer of MurmurHash3
 * (public domain) without its last shift, which only the low half would notice; an IPv6 address takes a round
 * more. Balancers that share a configuration agree on it, so a packet may reach any of them.
 * `upper` and `lower` are the halves of an IPv6 address; an IPv4 address is in `upper`.
 * With a seed the ports of an IPv6 flow are mixed before the lower half is: who has all of a prefix could otherwise
 * take back in the address what he changes in the ports.
 */
static __always_inline __u64 hash_words(const int family, __u64 upper, __u64 lower, __u64 ports, const __u64 seed)
{
	__u64 hash;

	if (family == 4) {
		hash = (upper << 32 | ports) ^ seed;
	} else {
		hash = seed ? upper ^ ports ^ seed : upper;
		hash ^= hash >> 33;
		hash = multiply(hash, 0xff51afd7ed558ccdULL);
		hash ^= seed ? lower : lower ^ ports;
	}
	hash ^= hash >> 33;
	hash = multiply(hash, 0xff51afd7ed558ccdULL);
	hash ^= hash >> 33;
	hash = multiply(hash, 0xc4ceb9fe1a85ec53ULL);
	return hash;
}

static __always_inline __u64 upper_half(const int family, const struct flow *flow)
{
	return family == 4 ? flow->client[0] : load64(flow->client);
}

static __always_inline __u64 lower_half(const int family, const struct flow *flow)
{
	return family == 4 ? 0 : load64(flow->client + 2);
}

static __always_inline __u64 flow_hash(const int family, const struct flow *flow, const __u64 seed)
{
	return hash_words(family, upper_half(family, flow), lower_half(family, flow),
			  (__u32)flow->client_port << 16 | flow->port, seed);
}

/* How many bits of the client's address choose the backend; 0: the whole flow does. */
static __always_inline __u32 affinity_prefix(const struct lookup_table *rules)
{
#ifdef FEATURE_AFFINITY
	return rules->flags >> AFFINITY_PREFIX_SHIFT & 0xff;
#else
	return 0;
#endif
}

/* Round robin with affinity: the flow table remembers whose turn a client got, whatever its flows. */
static __always_inline int remembers_clients(const struct lookup_table *rules)
{
#ifdef FEATURE_ROUND_ROBIN
	return rules->scheduler == SCHEDULER_ROUND_ROBIN && affinity_prefix(rules);
#else
	return 0;
#endif
}

#ifdef FEATURE_AFFINITY

/* So many bits of a word in network byte order; none and all of them if there are fewer or more. */
static __always_inline __u64 first_bits(__u64 word, __s32 bits)
{
	if (bits <= 0)
		return 0;
	return bits < 64 ? word & __builtin_bswap64(~0ULL << (64 - bits)) : word;
}

/* The hash of the client's prefix alone, so the same for all services. */
static __always_inline __u64 client_hash(const int family, const struct flow *flow, __u32 prefix, const __u64 seed)
{
	return hash_words(family, first_bits(upper_half(family, flow), prefix),
			  first_bits(lower_half(family, flow), prefix - 64), 0, seed);
}
#endif

/*
 * A service has its table in one of the maps of maps.h, by size. While its size changes it may have one in two of them;
 * the first one counts. Inlined lookups need tables of one size in a map; lookups in arrays of any number of lines
 * (BPF_F_INNER_MAP) are calls, 4.6 ns more for every service. With FEATURE_TABLE_SIZE the maps are looked through in
 * subprograms, which the verifier follows once.
 */
#define DEFAULT_SIZE 65537

static __always_inline const struct lookup_table *table_in(void *tables, __u32 service)
{
	void *table = lookup(tables, service);

	return table ? lookup(table, 0) : NULL;
}

#ifdef FEATURE_TABLE_SIZE
GLOBAL_SUBPROGRAM __u64 rules_in_any_size(__u64 service, __u64 unused, __u64 unused2, __u64 unused3);
GLOBAL_SUBPROGRAM __u64 hashed_in_any_size(__u64 service, __u64 hash, __u64 unused, __u64 unused2);
#endif

/* What holds for a service, without its slots; NULL if the service has no table. `copy` is room for it. */
static __always_inline const struct lookup_table *service_rules(__u32 service, struct lookup_table *copy)
{
#ifdef FEATURE_TABLE_SIZE
	__u64 rules = rules_in_any_size(service, 0, 0, 0);

	if (!rules)
		return NULL;
	copy->flags = rules & 0xffff;
	copy->scheduler = rules >> 16 & 0xffff;
	copy->idle_timeout = rules >> 32;
	/* Read again wherever it is needed: the verifier would follow every value that a register remembers. */
	asm volatile("" : : "r"(copy) : "memory");
	return copy;
#else
	return table_in(MAP_LOOKUP_65537, service);
#endif
}

/* The id of a backend; 0 is nobody: a table without backends has no slots in use. */
static __always_inline __u32 backend_in_slot(const struct lookup_table *table, __u64 slot, __u32 size)
{
	/* Otherwise the compiler checks the value that slot comes from, and the verifier cannot see that slot is bounded. */
	asm volatile("" : "+r"(slot));
	return slot < size ? ((const __u32 *)(table + 1))[slot] : 0;
}

/* Multiplying maps 32 bits evenly onto the table without a division. */
static __always_inline __u32 hashed_slot(const struct lookup_table *table, __u64 hash)
{
	return (hash >> 32) * table->length >> 32;
}

/* The backend of a hash, whatever the scheduler. */
static __always_inline __u32 hashed(__u32 service, const struct lookup_table *rules, __u64 hash)
{
#ifdef FEATURE_TABLE_SIZE
	return hashed_in_any_size(service, hash, 0, 0);
#else
	return backend_in_slot(rules, hashed_slot(rules, hash), DEFAULT_SIZE);
#endif
}

#ifdef FEATURE_ROUND_ROBIN
static __always_inline __u32 next_slot(__u32 service, __u32 length)
{
	__u32 *position = lookup(MAP_ROUND_ROBIN, service);
	__u32 slot;

	if (!position)
		return 0;
	slot = *position;
	/* A new table may be shorter than the position reached in the old one. */
	if (slot >= length)
		slot = 0;
	*position = slot + 1;
	return slot;
}

/* Tables of other sizes are for Maglev. */
static __always_inline __u32 next_in_turn(__u32 service, const struct lookup_table *rules, __u64 hash)
{
#ifdef FEATURE_TABLE_SIZE
	rules = table_in(MAP_LOOKUP_65537, service);
	if (!rules)
		return hashed_in_any_size(service, hash, 0, 0);
#endif
	return backend_in_slot(rules, next_slot(service, rules->length), DEFAULT_SIZE);
}
#endif

static __always_inline __u32 scheduled(__u32 service, const struct lookup_table *rules, __u64 hash)
{
#ifdef FEATURE_ROUND_ROBIN
	if (rules->scheduler == SCHEDULER_ROUND_ROBIN)
		return next_in_turn(service, rules, hash);
#endif
	return hashed(service, rules, hash);
}

#endif
