/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What lies in the maps of a network card that runs the program; plugins/module_utils/tables/offload.py packs the same
 * structures. The kernel gives a card plain arrays and hash tables alone (kernel/bpf/offload.c,
 * bpf_map_offload_map_alloc()).
 *
 * Endpoints, slots and backends are in two halves. Packets see the half that struct offload_control names; the engine
 * fills the other one and then writes that number, so that packets meet the old tables or the new ones.
 *
 * The engine gives the numbers of records, powers of two, on the command line: OFFLOAD_ENDPOINTS, OFFLOAD_SLOTS,
 * OFFLOAD_BACKENDS of a half, OFFLOAD_COUNTERS. A value of a map is one record, or with OFFLOAD_WHOLE a whole half, and all
 * counters: netdevsim takes maps of two entries.
 */
#ifndef LBOPS_OFFLOAD_LAYOUT_H
#define LBOPS_OFFLOAD_LAYOUT_H

#include "layout.h"
#include "maps.h"

#define OFFLOAD_CONTROL MAP(0)
#define OFFLOAD_MAP_ENDPOINTS MAP(1)
#define OFFLOAD_MAP_SLOTS MAP(2)
#define OFFLOAD_MAP_BACKENDS MAP(3)
#define OFFLOAD_MAP_COUNTERS MAP(4)

/* Slots of each service: the scheduler hash. */
#define OFFLOAD_SLOTS_SHIFT 9
#define OFFLOAD_PROBES 8
/* 2^32 divided by the golden ratio, odd. */
#define OFFLOAD_MULTIPLIER 0x9E3779B1U

struct offload_control {
	__u32 half; /* that packets see, 0 or 1 */
	__u32 mtu;  /* of the interface, in bytes */
	__u64 address; /* of the interface, in the upper 48 bits */
};

struct offload_backend {
	__be32 address; /* ipip: outer destination, source and the bits of it that the flow hash gives */
	__be32 source;
	__be32 source_mask;
	__u32 header_sum; /* as in struct backend */
	__u8 mac[6];
	__u8 forwarding;
	__u8 unused;
	__u32 service_counters; /* records of OFFLOAD_MAP_COUNTERS */
	__u32 backend_counters;
};

/* The first MAX_REASONS records are those of reasons, which count packets alone. */
struct offload_counters {
	__u64 packets;
	__u64 bytes;
};

#ifdef OFFLOAD_WHOLE
#define OFFLOAD_RECORDS(records) (records)
#else
#define OFFLOAD_RECORDS(records) 1
#endif

/* A record of a map whose values have `records` of them, a power of two. */
static __always_inline void *offload_record(void *map, const __u32 records, const __u32 bytes, __u64 number)
{
	void *value = lookup(map, number / records);

	if (!value || records == 1)
		return value;
	/* The compiler would mask parts of a number before it puts them together, and Linux 6.1 forgets the bounds of those. */
	asm volatile("" : "+r"(number));
	return value + (number & (records - 1)) * bytes;
}

#endif
