/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Why a packet was not simply forwarded: one counter each. layout.py names them in the same order. */
#ifndef LBOPS_REASONS_H
#define LBOPS_REASONS_H

enum reason {
	/* Passed to the kernel untouched. */
	PASS_NOT_IPV4,
	PASS_NOT_OURS,
	PASS_MALFORMED,
	PASS_FRAGMENT,
	PASS_IP_OPTIONS,
	PASS_TTL_EXPIRED, /* the kernel answers with ICMP time exceeded */
	PASS_LOCAL_REPLY, /* a backend answers the balancer itself, a health check say */
	/* Rewritten, then passed: the kernel resolves the neighbour while it forwards the packet. */
	PASS_NO_NEIGHBOUR,
	/* Dropped. */
	DROP_NO_BACKEND,
	DROP_NO_ROUTE,
	DROP_NO_NEIGHBOUR, /* dsr: the kernel would take the packet as its own */
	/* Answered. */
	TX_ECHO,
	REASONS,
};

#endif
