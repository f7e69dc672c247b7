/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps by number. The engine creates and pins them, loads the program and puts their descriptors in
 * place of these numbers, so that a program is replaced while the maps and what they hold stay.
 */
#ifndef LBOPS_MAPS_H
#define LBOPS_MAPS_H

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))

#define MAP_CONTROL MAP(0)           /* array of 1 struct control */
#define MAP_ENDPOINTS MAP(1)         /* array of 1 array of 1 struct endpoint_table */
#define MAP_RINGS MAP(2)             /* array of MAX_SERVICES arrays of 1 struct ring */
#define MAP_BACKENDS MAP(3)          /* array of MAX_BACKENDS struct backend */
#define MAP_SERVICE_COUNTERS MAP(4)  /* per-CPU array of MAX_SERVICES struct counters */
#define MAP_BACKEND_COUNTERS MAP(5)  /* per-CPU array of MAX_BACKENDS struct counters */
#define MAP_REASONS MAP(6)           /* per-CPU array of REASONS __u64 */
#define MAP_ROUND_ROBIN MAP(7)       /* per-CPU array of MAX_SERVICES __u32, the next slot */
#define MAP_BACKEND_NEXT_HOPS MAP(8) /* per-CPU array of MAX_BACKENDS struct next_hop */
#define MAP_CLIENT_NEXT_HOPS MAP(9)  /* per-CPU array of CLIENT_NEXT_HOPS struct next_hop */

static __always_inline void *lookup(void *map, __u32 index)
{
	return bpf_map_lookup_elem(map, &index);
}

#endif
