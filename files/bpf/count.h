/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting, in per-CPU maps: plain additions, no atomics. */
#ifndef LBOPS_COUNT_H
#define LBOPS_COUNT_H

#include "layout.h"
#include "maps.h"
#include "reasons.h"

static __always_inline void count_reason(enum reason reason)
{
	__u64 *packets = lookup(MAP_REASONS, reason);

	if (packets)
		*packets += 1;
}

/* A verdict with the reason for it, which count_verdict() counts at the program's end, where the code for it is once. */
static __always_inline int with_reason(enum reason reason, int verdict)
{
	return (reason + 1) << 8 | (verdict & 0xff);
}

static __always_inline enum reason reason_of(int verdict)
{
	return (verdict >> 8) - 1;
}

/* Returns the verdict alone. */
static __always_inline int count_verdict(int verdict)
{
	count_reason(reason_of(verdict));
	return (__s8)verdict;
}

static __always_inline int has_reason(int verdict)
{
	return verdict >> 8 != 0;
}

static __always_inline void count_forwarded(const struct backend *backend, struct backend_counters *own, __u64 bytes)
{
	struct counters *counters = lookup(MAP_SERVICE_COUNTERS, backend->service_counters);

	if (counters) {
		counters->packets += 1;
		counters->bytes += bytes;
	}
	own->counters.packets += 1;
	own->counters.bytes += bytes;
}

static __always_inline void count_reply(const struct backend *backend, __u64 bytes)
{
	struct counters *counters = lookup(MAP_SERVICE_COUNTERS, backend->service_counters);
	struct backend_counters *own = lookup(MAP_BACKEND_COUNTERS, backend->backend_counters);

	if (counters) {
		counters->reply_packets += 1;
		counters->reply_bytes += bytes;
	}
	if (own) {
		own->counters.reply_packets += 1;
		own->counters.reply_bytes += bytes;
	}
}

static __always_inline void count_new_flow(const struct backend *backend)
{
	struct counters *counters = lookup(MAP_SERVICE_COUNTERS, backend->service_counters);
	struct backend_counters *own = lookup(MAP_BACKEND_COUNTERS, backend->backend_counters);

	if (counters)
		counters->new_flows += 1;
	if (own)
		own->counters.new_flows += 1;
}

#endif
