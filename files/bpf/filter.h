/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who may send at all: rules by source prefix and protocol, for every IP packet that arrives. */
#ifndef LBOPS_FILTER_H
#define LBOPS_FILTER_H

#include "clock.h"
#include "count.h"
#include "endpoints.h"
#include "layout.h"
#include "maps.h"
#include "packet.h"
#include "verifier.h"

#define LENGTHS4_STEPS 6 /* halvings of 32 lengths */
#define LENGTHS6_STEPS 8 /* of 128 */

static __always_inline const struct filter_line *filter_line(void *table, __u32 number)
{
	return lookup(table, number);
}

/* For the second line of a prefix. */
static __always_inline __u64 second_hash(__u64 hash)
{
	return (hash ^ hash >> 29) * ENDPOINT_MULTIPLIER;
}

/* A slot of IPv4 by its prefix; NULL if it has none. */
static __always_inline const struct filter_slot4 *find_prefix4(void *table, const struct filter_header *header,
							       __u64 key)
{
	__u64 hash = key * ENDPOINT_MULTIPLIER;
	int probe, slot;

#pragma unroll
	for (probe = 0; probe < 2; probe++, hash = second_hash(hash)) {
		const struct filter_line *line = filter_line(table, header->first4 + (hash >> header->shift4));

		if (!line)
			return NULL;
#pragma unroll
		for (slot = 0; slot < 4; slot++) {
			if (line->slots4[slot].key == key)
				return &line->slots4[slot];
			if (!line->slots4[slot].key)
				return NULL;
		}
	}
	return NULL;
}

/* The verdict for an address: 0, or its place among the verdicts. */
static __always_inline __u32 find_verdict4(void *table, const struct filter_header *header, __u32 host)
{
	__u32 low = 0, high = header->count4, verdict = header->any4;
	int step;

	for (step = 0; step < LENGTHS4_STEPS; step++) {
		__u32 middle = (low + high) / 2, length;
		const struct filter_slot4 *slot;

		if (low >= high)
			break;
		length = header->lengths4[middle & 31];
		slot = find_prefix4(table, header,
				    (host & (__u32)(~0ULL << (32 - length & 63))) | (__u64)length << 32);
		if (slot) {
			verdict = slot->verdict;
			low = middle + 1;
		} else {
			high = middle;
		}
		FORGET(low, verdict);
		FORGET(high, verdict);
	}
	return verdict;
}

#ifdef FEATURE_IPV6
static __always_inline const struct filter_slot6 *find_prefix6(void *table, const struct filter_header *header,
							       __u64 upper, __u64 lower, __u32 length)
{
	__u64 hash = (upper ^ length) * ENDPOINT_MULTIPLIER;
	int probe, slot;

	hash = (hash ^ hash >> 32 ^ lower) * ENDPOINT_MULTIPLIER;
#pragma unroll
	for (probe = 0; probe < 2; probe++, hash = second_hash(hash)) {
		const struct filter_line *line = filter_line(table, header->first6 + (hash >> header->shift6));

		if (!line)
			return NULL;
#pragma unroll
		for (slot = 0; slot < 2; slot++) {
			if (!line->slots6[slot].length)
				return NULL;
			if (line->slots6[slot].length == length && line->slots6[slot].address[0] == upper &&
			    line->slots6[slot].address[1] == lower)
				return &line->slots6[slot];
		}
	}
	return NULL;
}

static __always_inline __u32 find_verdict6(void *table, const struct filter_header *header, __u64 upper, __u64 lower)
{
	__u32 low = 0, high = header->count6, verdict = header->any6;
	int step;

	for (step = 0; step < LENGTHS6_STEPS; step++) {
		__u32 middle = (low + high) / 2, length;
		const struct filter_slot6 *slot;
		const struct filter_line *line;

		if (low >= high)
			break;
		/* The lengths are the two lines behind the first. */
		line = filter_line(table, 1 + (middle >> 6));
		if (!line)
			break;
		length = line->bytes[middle & 63];
		if (length > 64)
			slot = find_prefix6(table, header, upper, lower & ~0ULL << (128 - length & 63), length);
		else
			slot = find_prefix6(table, header, upper & ~0ULL << (64 - length & 63), 0, length);
		if (slot) {
			verdict = slot->verdict;
			low = middle + 1;
		} else {
			high = middle;
		}
		FORGET(low, verdict);
		FORGET(high, verdict);
	}
	return verdict;
}
#endif

/*
 * A token bucket as the time at which it would be full (GCRA, ITU-T I.371): a packet over the rate only reads it, so
 * a flood does not fight for the cache line. The coarse clock stands still for up to 10 ms, which the burst bridges.
 */
static __always_inline int is_over_rate(const struct filter_rule *rule)
{
	__u64 now = coarse_ns(), *full = lookup(MAP_FILTER_LIMITS, rule->id), time;

	if (!full)
		return 0;
	time = *(volatile __u64 *)full;
	if (time <= now) {
		*(volatile __u64 *)full = now + rule->interval;
		return 0;
	}
	if (time - now > (__u64)rule->interval * (rule->burst - 1))
		return 1;
	__sync_fetch_and_add(full, rule->interval);
	return 0;
}

/* Applies the rules of a verdict, the place of which find_verdict4() or find_verdict6() gave. */
static __always_inline __u64 is_dropped_by(void *table, const struct filter_header *header, __u32 verdict, __u64 class)
{
	const struct filter_line *line;
	const struct filter_rule *rule;
	struct filter_counters *counters;
	int dropped;

	if (!verdict)
		return 0;
	line = filter_line(table, header->first_verdict + verdict);
	if (!line)
		return 0;
	rule = &line->rules[class & (FILTER_CLASSES - 1)];
	if (!rule->action)
		return 0;
	dropped = rule->action == FILTER_DROP || (rule->action == FILTER_LIMIT && is_over_rate(rule));
	counters = lookup(MAP_FILTER_COUNTERS, rule->id);
	if (counters) {
		counters->packets += 1;
		counters->dropped += dropped;
	}
	if (dropped)
		count_reason(rule->action == FILTER_DROP ? DROP_FILTERED : DROP_RATE_LIMITED);
	return dropped;
}

static __always_inline enum filter_class filter_class(const int family, const struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return FILTER_TCP;
	if (packet->protocol == IPPROTO_UDP)
		return FILTER_UDP;
	return is_icmp(family, packet) ? FILTER_ICMP : FILTER_OTHER;
}

/* The address as it lies in the packet. Returns 1 if the packet is dropped, and counts it so. */
static __always_inline int is_filtered4(__be32 address, enum filter_class class)
{
	void *table = lookup(MAP_FILTERS, 0);
	const struct filter_header *header = table ? (const void *)filter_line(table, 0) : NULL;

	return header ? is_dropped_by(table, header, find_verdict4(table, header, ntohl(address)), class) : 0;
}

#ifdef FEATURE_IPV6
/* The same with both halves of the address as they lie in the packet. */
static __always_inline int is_filtered6(__u64 upper, __u64 lower, enum filter_class class)
{
	void *table = lookup(MAP_FILTERS, 0);
	const struct filter_header *header = table ? (const void *)filter_line(table, 0) : NULL;
	__u32 verdict;

	if (!header)
		return 0;
	verdict = find_verdict6(table, header, __builtin_bswap64(upper), __builtin_bswap64(lower));
	return is_dropped_by(table, header, verdict, class);
}
#endif

static __always_inline int is_filtered(const int family, const struct packet *packet)
{
	const __be32 *source = source_of(family, packet);

#ifdef FEATURE_IPV6
	if (family == 6)
		return is_filtered6(load64(source), load64(source + 2), filter_class(family, packet));
#endif
	return is_filtered4(*source, filter_class(family, packet));
}

GLOBAL_SUBPROGRAM __u64 call_filter4(__u64 address, __u64 class, __u64 unused, __u64 unused2);
GLOBAL_SUBPROGRAM __u64 call_filter6(__u64 upper, __u64 lower, __u64 class, __u64 unused);

/* The same by a call, for packets of which there are fewer. */
static __always_inline int is_filtered_by_call(const int family, const struct packet *packet)
{
	const __be32 *source = source_of(family, packet);

	if (family == 6)
		return call_filter6(load64(source), load64(source + 2), filter_class(family, packet), 0);
	return call_filter4(*source, filter_class(family, packet), 0, 0);
}

#endif
