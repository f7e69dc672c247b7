/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The lookup table that a service had before its backends changed. Flow tables are of one balancer and one boot; a TCP
 * connection that is in none of them may have begun elsewhere or earlier, under that table. The engine keeps such a table
 * for TCP services with a flow table only.
 */
#ifndef LBOPS_HANDOVER_H
#define LBOPS_HANDOVER_H

#include "layout.h"
#include "maps.h"
#include "select.h"
#include "verifier.h"

/* The kernel refuses a subprogram that nothing calls. */
#if defined(FEATURE_HANDOVER) && defined(FEATURE_FLOW_TABLE)
#define HAS_PREVIOUS_TABLES
GLOBAL_SUBPROGRAM __u64 previous_backend(__u64 service, __u64 hash, __u64 affinity_prefix, __u64 now);
#endif

#endif
