/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps by number. The engine creates and pins them, loads the program and puts their descriptors in place of these
 * numbers, so that a program is replaced while the maps and what they hold stay. Names in small letters are options of
 * xdp_program, and what layout.py makes of them.
 */
#ifndef LBOPS_MAPS_H
#define LBOPS_MAPS_H

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))

#define MAP_CONTROL MAP(0)           /* array of 1 struct control, see CONTROL */
#define MAP_ENDPOINTS MAP(1)         /* array of 1 array of 1 struct endpoint_table */
#define MAP_LOOKUP_65537 MAP(2)      /* array of max_services arrays of 1 struct lookup_table with 65537 slots */
#define MAP_BACKENDS MAP(3)          /* array of max_backends struct backend */
#define MAP_SERVICE_COUNTERS MAP(4)  /* per-CPU array of max_services struct counters */
#define MAP_BACKEND_COUNTERS MAP(5)  /* per-CPU array of max_backends struct backend_counters */
#define MAP_REASONS MAP(6)           /* per-CPU array of REASONS __u64 */
#define MAP_ROUND_ROBIN MAP(7)       /* per-CPU array of max_services __u32, the next slot */
#define MAP_CLIENT_NEXT_HOPS MAP(8)  /* per-CPU array of CLIENT_NEXT_HOPS struct client_next_hop */
#define MAP_ENDPOINTS6 MAP(9)       /* array of 1 array of 1 struct endpoint6_table */
#define MAP_FLOWS MAP(10)            /* array of CPUS arrays of flow_buckets struct flow_bucket */
#define MAP_FRAGMENTS MAP(11)        /* per-CPU array of FRAGMENT_BUCKETS struct flow_bucket */
#define MAP_BUDGET MAP(12)           /* per-CPU array of 1 struct budget */
#define MAP_SESSIONS MAP(13)         /* array of MAX_SESSIONS struct session */
#define MAP_POOLS MAP(14)            /* array of MAX_POOLS struct pool */
#define MAP_LINKS MAP(15)            /* devmap hash of interfaces that are up, by index */
#define MAP_FILTERS MAP(16)          /* array of 1 array of filter_lines struct filter_line */
#define MAP_FILTER_COUNTERS MAP(17)  /* per-CPU array of max_filters struct filter_counters */
#define MAP_FILTER_LIMITS MAP(18)    /* array of max_filters __u64, see filter.h */
#define MAP_LATENCY MAP(19)          /* per-CPU array of 1 struct latency */
#define MAP_LOOKUP_1021 MAP(20)      /* the same with fewer slots ... */
#define MAP_LOOKUP_4093 MAP(21)
#define MAP_LOOKUP_16381 MAP(22)
#define MAP_LOOKUP_131071 MAP(23)    /* ... and with more */
#define MAP_PREVIOUS MAP(24)         /* array of max_services arrays of any number of lines, see struct previous_header */
#define MAP_SOURCE_RANGES MAP(25)    /* LPM trie of MAX_SOURCE_RANGES struct source_range, twice as many while they change */
#define MAP_NEXT_PROGRAM MAP(26)     /* program array of 1, for frames in one buffer ... */
#define MAP_NEXT_PROGRAM_FRAGS MAP(27) /* ... and for frames in several */

/* Where an array of one element has it: no lookup, and nothing to check (BPF_PSEUDO_MAP_VALUE, kernel 5.2). */
#define CONTROL ((struct control *)bpf_pseudo_fd(2, 0))

static __always_inline void *lookup(void *map, __u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

#endif
