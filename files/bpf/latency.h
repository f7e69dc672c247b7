/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long the program takes, for one packet in LATENCY_SAMPLE by chance: a precise clock costs as much as the rest of
 * the program. One reading of the clock is part of what is measured.
 */
#ifndef LBOPS_LATENCY_H
#define LBOPS_LATENCY_H

#include "layout.h"
#include "maps.h"
#include "verifier.h"

#ifdef FEATURE_LATENCY
#define LATENCY_SAMPLE 256

/* When the packet came, ns; 0 if it is not measured. */
static __always_inline __u64 start_clock(void)
{
	__u32 chance = bpf_get_prandom_u32();
	__u64 start = 0;

	if (chance % LATENCY_SAMPLE == 0)
		start = bpf_ktime_get_ns();
	/* Or the verifier would follow the rest for each of both. */
	FORGET(start, (__u64)chance);
	return start;
}

/* The logarithm to base 2, rounded down; of 0 it is 0. */
static __always_inline __u32 logarithm(__u64 value)
{
	__u32 found = 0, bits;

#pragma unroll
	for (bits = 32; bits; bits >>= 1) {
		__u32 step = (value >> bits != 0) * bits;

		value >>= step;
		found += step;
	}
	return found;
}

static __always_inline void stop_clock(__u64 start)
{
	struct latency *latency;
	__u64 taken;
	__u32 bucket;

	if (!start)
		return;
	taken = bpf_ktime_get_ns() - start;
	latency = lookup(MAP_LATENCY, 0);
	if (!latency)
		return;
	bucket = logarithm(taken);
	bucket = bucket < LATENCY_FIRST ? 0 : bucket - LATENCY_FIRST + 1;
	if (bucket >= LATENCY_BUCKETS)
		bucket = LATENCY_BUCKETS - 1;
	latency->nanoseconds += taken;
	latency->packets[bucket] += 1;
}
#else
static __always_inline __u64 start_clock(void)
{
	return 0;
}

static __always_inline void stop_clock(__u64 start)
{
}
#endif

#endif
