/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Time in ticks of 2^30 ns, from the kernel's coarse clock: a precise one costs as much as the rest of the program. */
#ifndef LBOPS_CLOCK_H
#define LBOPS_CLOCK_H

#define TICK_SHIFT 30

static __u64 (*coarse_ns)(void) = (void *)160; /* bpf_ktime_get_coarse_ns, kernel 5.11 */

/* The longest time that is asked for, and more. */
#define TICKS_AT_BOOT 4096

/* Units of 2^20 ns. */
static __always_inline __u32 clock_units(void)
{
	return coarse_ns() >> 20;
}

/* Tick 0, which stands for never, is long ago from the first one on. */
static __always_inline __u32 clock_ticks(void)
{
	return (coarse_ns() >> TICK_SHIFT) + TICKS_AT_BOOT;
}

#endif
