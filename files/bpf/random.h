/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Random numbers for what others see. */
#ifndef LBOPS_RANDOM_H
#define LBOPS_RANDOM_H

#include "layout.h"
#include "maps.h"

/* Returns 32 bits. The seed hides the state of the kernel's random generator. */
static __always_inline __u64 random_number(void)
{
	return (bpf_get_prandom_u32() ^ CONTROL->seed) * ENDPOINT_MULTIPLIER >> 32;
}

#endif
