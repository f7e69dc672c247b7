/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The subprograms (verifier.h), behind the program: loops over many places, and what few packets need. */
#ifndef LBOPS_SUBPROGRAMS_H
#define LBOPS_SUBPROGRAMS_H

#include "filter.h"
#include "flow_table.h"
#include "handover.h"
#include "next_hop.h"
#include "quic.h"
#include "random.h"
#include "reply_check.h"
#include "select.h"
#include "sessions.h"
#include "source_ranges.h"
#include "verifier.h"

#if defined(FEATURE_FLOW_TABLE) || defined(FEATURE_FULL_NAT)
/*
 * After the network card has spread flows anew, or for an ICMP error: another CPU may know the flow, or did once; it
 * is the youngest entry that counts, of one that was not closed. A CPU whose clock is a tick ahead makes no difference.
 */
GLOBAL_SUBPROGRAM __u64 search_flow(__u64 signature, __u64 idle_timeout, __u64 now, __u64 cause)
{
	/* 1 unless it is for a SYN: a new connection does not go on with one that was closed. No branch for the verifier. */
	__u64 may_be_closed = (cause - SEARCH_FOR_SYN | SEARCH_FOR_SYN - cause) >> 63;
	__s64 best = 0;
	__u32 cpu;
	int place;

	IS_GLOBAL;
	FORGET(may_be_closed, now);
	for (cpu = 0; cpu < CPUS; cpu++) {
		struct flow_bucket *bucket = flow_bucket(cpu, signature);
		__u64 found = 0, is_found, is_open, age;

		if (!bucket)
			continue;
#pragma unroll
		for (place = 0; place < FLOWS_PER_BUCKET; place++)
			found |= bucket->flows[place] &
				 -same_signature(bucket->flows[place], cut_signature(signature));
		is_open = same_state(found, FLOW_CLOSING) ^ 1;
		age = flow_age(found, now + 1);
		is_found = (found | -found) >> 63 & ((idle_timeout + 1 - age) >> 63 ^ 1) & (is_open | may_be_closed);
		best = larger(best, -is_found & (is_open << FLOW_STATE_SHIFT | (MAX_FLOW_AGE - age) << FLOW_NUMBER_BITS |
						 flow_number(found)));
	}
	return flow_number(best);
}
#endif

#ifdef HAS_PREVIOUS_TABLES
/* Returns the id of a backend that is in the service, drained or not, and healthy; 0 if there is none. */
GLOBAL_SUBPROGRAM __u64 previous_backend(__u64 service, __u64 hash, __u64 affinity_prefix, __u64 now)
{
	const struct previous_header *header;
	const struct backend *backend;
	const __u32 *ids;
	void *table;
	__u32 slot, id;

	IS_GLOBAL;
	table = lookup(MAP_PREVIOUS, service);
	if (!table)
		return 0;
	header = lookup(table, 0);
	if (!header || header->seed != HASH_SEED || header->affinity_prefix != affinity_prefix ||
	    header->until <= (__u32)now)
		return 0;
	slot = (hash >> 32) * header->length >> 32;
	ids = lookup(table, 1 + slot / IDS_PER_LINE);
	if (!ids)
		return 0;
	id = ids[slot & (IDS_PER_LINE - 1)];
	backend = lookup(MAP_BACKENDS, id);
	return backend && backend->service == service && backend->forwarding ? id : 0;
}
#endif

#ifdef FEATURE_FULL_NAT
/*
 * Returns a session of this CPU's part of the pool, at random (RFC 6056): who guesses the next port can spoof replies. If
 * none of those tried is free, the oldest one that is half-open, the service's own before others': a flood of one service
 * recycles its own sessions, and another service's clients still find a port. Returns MAX_SESSIONS if all are established.
 */
GLOBAL_SUBPROGRAM __u64 find_free_session(__u64 first, __u64 ports, __u64 now, __u64 service)
{
	__u64 units = clock_units(), best = 0, found = MAX_SESSIONS;
	int tries;

	IS_GLOBAL;
	for (tries = 0; tries < PORTS_TRIED; tries++) {
		__u64 port = random_number() * ports >> 32, rank;
		struct session *session = lookup(MAP_SESSIONS, first + port);

		if (!session)
			return MAX_SESSIONS;
		if (!is_alive(session, now))
			return first + port;
		if (!is_half_open(session))
			continue;
		rank = ((__u64)(session->service == service) << 32 | (__u32)(units - session->started)) + 1;
		if (rank > best) {
			best = rank;
			found = first + port;
		}
		FORGET(best, units);
		FORGET(found, units);
	}
	return found;
}
SUBPROGRAM int make_session4(const struct backend *backend, __u32 backend_id, const struct flow *flow, __u32 protocol,
			     __u32 idle_timeout)
{
	return make_session(4, backend, backend_id, flow, protocol, idle_timeout);
}

#ifdef FEATURE_IPV6
SUBPROGRAM int make_session6(const struct backend *backend, __u32 backend_id, const struct flow *flow, __u32 protocol,
			     __u32 idle_timeout)
{
	return make_session(6, backend, backend_id, flow, protocol, idle_timeout);
}
#endif
#endif

#ifdef FEATURE_TABLE_SIZE
#define EACH_SIZE(use)                  \
	do {                            \
		use(MAP_LOOKUP_65537, 65537);   \
		use(MAP_LOOKUP_16381, 16381);   \
		use(MAP_LOOKUP_4093, 4093);     \
		use(MAP_LOOKUP_1021, 1021);     \
		use(MAP_LOOKUP_131071, 131071); \
	} while (0)

GLOBAL_SUBPROGRAM __u64 rules_in_any_size(__u64 service, __u64 unused, __u64 unused2, __u64 unused3)
{
	const struct lookup_table *table;

	IS_GLOBAL;
	asm volatile("" : : "r"(unused), "r"(unused2), "r"(unused3));
#define RULES(map, size)                \
	table = table_in(map, service); \
	if (table)                      \
		return (__u64)table->idle_timeout << 32 | table->scheduler << 16 | table->flags
	EACH_SIZE(RULES);
#undef RULES
	return 0;
}

GLOBAL_SUBPROGRAM __u64 hashed_in_any_size(__u64 service, __u64 hash, __u64 unused, __u64 unused2)
{
	const struct lookup_table *table;

	IS_GLOBAL;
	asm volatile("" : : "r"(unused), "r"(unused2));
#define HASHED(map, size)               \
	table = table_in(map, service); \
	if (table)                      \
		return backend_in_slot(table, hashed_slot(table, hash), size)
	EACH_SIZE(HASHED);
#undef HASHED
	return 0;
}
#endif

#ifdef FEATURE_SOURCE_RANGES
GLOBAL_SUBPROGRAM __u64 is_in_source_range(__u64 service, __u64 bits, __u64 upper, __u64 lower)
{
	struct source_range key = {
		.length = 32 + bits,
		.service = service,
		.address = { upper, upper >> 32, lower, lower >> 32 },
	};

	IS_GLOBAL;
	return bpf_map_lookup_elem(MAP_SOURCE_RANGES, &key) != NULL;
}
#endif

#ifdef FEATURE_QUIC
GLOBAL_SUBPROGRAM __u64 find_displaced_server(__u64 family, __u64 key, __u64 unused, __u64 unused2)
{
	const __u32 *found = NULL;
	const void *table;

	IS_GLOBAL;
	asm volatile("" : : "r"(unused), "r"(unused2));
	if (family == 4) {
		table = endpoint_table(4);
		found = table ? find_endpoint4(table, key) : NULL;
	} else {
		table = endpoint_table(6);
		found = table ? find_endpoint6(table, key, 0, ENDPOINT_QUIC_SERVER << 24) : NULL;
	}
	return found ? *found : 0;
}
#endif

#ifdef FEATURE_FILTERS
GLOBAL_SUBPROGRAM __u64 call_filter4(__u64 address, __u64 class, __u64 unused, __u64 unused2)
{
	IS_GLOBAL;
	asm volatile("" : : "r"(unused), "r"(unused2));
	return is_filtered4(address, class);
}

#ifdef FEATURE_IPV6
GLOBAL_SUBPROGRAM __u64 call_filter6(__u64 upper, __u64 lower, __u64 class, __u64 unused)
{
	IS_GLOBAL;
	asm volatile("" : : "r"(unused));
	return is_filtered6(upper, lower, class);
}
#endif
#endif

#ifdef KERNEL_IS_ASKED
SUBPROGRAM int ask_kernel4(hook_context *ctx, struct next_hop *hop, const __be32 *address, __u32 generation)
{
	return look_up_route(ctx, 4, hop, address, generation);
}

#if defined(FEATURE_IPV6) || defined(FEATURE_IPIP) || defined(FEATURE_GUE)
SUBPROGRAM int ask_kernel6(hook_context *ctx, struct next_hop *hop, const __be32 *address, __u32 generation)
{
	return look_up_route(ctx, 6, hop, address, generation);
}
#endif
#endif

#ifdef REPLIES_ARE_CHECKED
/*
 * Whether frames from this interface of the kernel's routes arrive on another one: on a port of a bond or bridge, or with a
 * tag on the interface below a VLAN. Which VLAN device a tag belongs to is not known here, so a tagged frame may come from
 * any interface that is not the balancer's own.
 */
GLOBAL_SUBPROGRAM __u64 is_above(__u64 interface, __u64 arrived, __u64 is_tagged, __u64 unused)
{
	__u64 master = 0, is_own = 0;
	int number;

	IS_GLOBAL;
	asm volatile("" : : "r"(unused));
	/* Unrolled, it would take more of the stack than is left. */
#pragma clang loop unroll(disable)
	for (number = 0; number < MAX_INTERFACES; number++) {
		const struct interface *known = &CONTROL->interfaces[number];

		if (known->index == arrived)
			master = known->master;
		if (known->index == interface)
			is_own = 1;
	}
	return interface == master || (is_tagged && !is_own);
}
#endif

/* BCC tells where the program begins, and the size of its first function only: compiler.py looks for this one. */
GLOBAL_SUBPROGRAM __u64 end_of_program(__u64 unused, __u64 unused2, __u64 unused3, __u64 unused4)
{
	return END_OF_PROGRAM;
}

#endif
