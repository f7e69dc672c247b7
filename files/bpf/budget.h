/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What costs much is done so many times a tick and CPU, no more, whatever arrives. */
#ifndef LBOPS_BUDGET_H
#define LBOPS_BUDGET_H

#include "clock.h"
#include "layout.h"
#include "maps.h"

#define MAX_SEARCHES 10000 /* for each cause */
#define MAX_ERRORS 100

static __always_inline struct budget *budget(__u32 now)
{
	struct budget *budget = lookup(MAP_BUDGET, 0);

	if (budget && budget->tick != now) {
		__builtin_memset(budget, 0, sizeof(*budget));
		budget->tick = now;
	}
	return budget;
}

/* Each service has its own, so that a flood of one service leaves the others' clients theirs. */
static __always_inline __u32 *flows_spent(struct budget *budget, __u32 service)
{
	return &budget->flows[service & (FLOW_BUDGETS - 1)];
}

static __always_inline int spend(__u32 *spent, __u32 limit)
{
	if (*spent >= limit)
		return 0;
	*spent += 1;
	return 1;
}

#endif
