/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a CPU remembers of flows: a table of its own, so that nobody else writes to its cache lines. A flow is
 * known by 29 bits of a seeded hash within one of many buckets; two flows taken for one share a backend.
 */
#ifndef LBOPS_FLOW_TABLE_H
#define LBOPS_FLOW_TABLE_H

#include "clock.h"
#include "endpoints.h"
#include "layout.h"
#include "maps.h"
#include "verifier.h"

#define FLOWS_PER_BUCKET 8
#define FLOW_NUMBER_BITS 21
#define FLOW_TICK_BITS 12
#define FLOW_STATE_SHIFT (FLOW_NUMBER_BITS + FLOW_TICK_BITS)
#define FLOW_STATE_BITS 2
#define FLOW_SIGNATURE_SHIFT (FLOW_STATE_SHIFT + FLOW_STATE_BITS)
#define MAX_FLOW_AGE ((1 << FLOW_TICK_BITS) - 1)

static __always_inline __u32 flow_number(__u64 flow)
{
	return flow & ((1 << FLOW_NUMBER_BITS) - 1);
}

/* Ticks since a flow was seen, modulo an hour and a bit. */
static __always_inline __u32 flow_age(__u64 flow, __u32 now)
{
	return (now - (flow >> FLOW_NUMBER_BITS)) & MAX_FLOW_AGE;
}

static __always_inline __u32 flow_state(__u64 flow)
{
	return flow >> FLOW_STATE_SHIFT & ((1 << FLOW_STATE_BITS) - 1);
}

/* The signature is one that cut_signature() made. */
static __always_inline __u64 flow_entry(__u64 signature, __u32 state, __u32 number, __u32 now)
{
	return signature << FLOW_SIGNATURE_SHIFT | (__u64)state << FLOW_STATE_SHIFT |
	       (__u64)(now & MAX_FLOW_AGE) << FLOW_NUMBER_BITS | number;
}

/* A round more, with the seed that attackers do not know and with what the flow belongs to. */
static __always_inline __u64 flow_signature(__u64 hash, __u32 service)
{
	hash ^= (__u64)service << 32;
	hash ^= CONTROL->seed;
	hash ^= hash >> 29;
	hash *= 0xbf58476d1ce4e5b9ULL;
	return hash ^ hash >> 32;
}

static __always_inline struct flow_bucket *flow_bucket(__u32 cpu, __u64 signature)
{
	void *table = lookup(MAP_FLOWS, cpu);

	return table ? lookup(table, signature >> FLOW_SHIFT) : NULL;
}

/* 1 if both signatures are the same, else 0; without a branch, of which nothing could predict the way. */
static __always_inline __u64 same_signature(__u64 flow, __u64 signature)
{
	__u64 difference = (flow >> FLOW_SIGNATURE_SHIFT ^ signature) - 1;

	asm volatile("" : "+r"(difference));
	return difference >> 63;
}

/* 1 if the flow is in this state, else 0; without a branch. */
static __always_inline __u64 same_state(__u64 flow, enum flow_state state)
{
	__u64 difference = (__u64)(flow_state(flow) ^ state) - 1;

	asm volatile("" : "+r"(difference));
	return difference >> 63;
}

/* The bits of a signature that an entry has. Entries of layout 3 have two more, where the state is now. */
static __always_inline __u64 cut_signature(__u64 signature)
{
	return signature << FLOW_STATE_SHIFT >> FLOW_SIGNATURE_SHIFT;
}

/* Where the flow is in the bucket; NULL if it is not. */
static __always_inline __u64 *find_flow(struct flow_bucket *bucket, __u64 signature)
{
	__u64 place, same, found = 0, found_at = 0;

	signature = cut_signature(signature);
#pragma unroll
	for (place = 0; place < FLOWS_PER_BUCKET; place++) {
		same = same_signature(bucket->flows[place], signature);
		found |= bucket->flows[place] & -same;
		found_at += place * same;
	}
	return found ? &bucket->flows[found_at & (FLOWS_PER_BUCKET - 1)] : NULL;
}

/* The larger one, without a branch that would double the verifier's work each time. */
static __always_inline __s64 larger(__s64 one, __s64 other)
{
	__s64 difference = one - other, is_negative = difference >> 63;

	asm volatile("" : "+r"(is_negative));
	return one - (difference & is_negative);
}

/*
 * An empty place, or else that of the flow that was seen least recently: of those that are not established, or of all
 * that have been idle for longer than this. NULL if all are established: new flows do not push them out.
 */
static __always_inline __u64 *place_for_flow(struct flow_bucket *bucket, __u32 idle_timeout, __u32 now)
{
	__s64 best = 0;
	int place;

#pragma unroll
	for (place = 0; place < FLOWS_PER_BUCKET; place++) {
		__u64 flow = bucket->flows[place], is_empty = ~(flow | -flow) >> 63, age = flow_age(flow, now);
		__u64 is_free = is_empty | ((__u64)idle_timeout - age) >> 63 |
				same_state(flow, FLOW_ESTABLISHED) ^ 1;

		best = larger(best, (is_empty << FLOW_TICK_BITS | is_free << (FLOW_TICK_BITS + 1) | age) << 3 | place);
	}
	return best >> (FLOW_TICK_BITS + 4) ? &bucket->flows[best & (FLOWS_PER_BUCKET - 1)] : NULL;
}

/* The number of a flow that was seen within so many ticks; 0 if it is unknown. */
static __always_inline __u32 recall_flow(__u64 flow, __u32 idle_timeout, __u32 now)
{
	return flow_age(flow, now) > idle_timeout ? 0 : flow_number(flow);
}

/* It is seen now, in this state. Writing costs more than reading, so the time is written once a tick. */
static __always_inline void see_flow(__u64 *flow, __u32 state, __u32 now)
{
	if (flow_age(*flow, now) || flow_state(*flow) != state)
		*flow = flow_entry(*flow >> FLOW_SIGNATURE_SHIFT, state, flow_number(*flow), now);
}

GLOBAL_SUBPROGRAM __u64 search_flow(__u64 signature, __u64 idle_timeout, __u64 now, __u64 cause);

#endif
