/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reasons for not forwarding a packet, or for forwarding it in a way of its own, with one counter each. layout.py has the
 * same order. New reasons go at the end, because a host's map keeps its counters when the engine is updated.
 */
#ifndef LBOPS_REASONS_H
#define LBOPS_REASONS_H

enum reason {
	/* Passed to the kernel untouched. */
	PASS_NOT_IP,
	PASS_NOT_OURS,
	PASS_MALFORMED,
	PASS_EXTENSION_HEADERS,
	PASS_TTL_EXPIRED, /* the kernel answers with ICMP time exceeded */
	PASS_LOCAL_REPLY, /* a backend answers the balancer itself, a health check say */
	/* Rewritten, then passed: the kernel resolves the neighbour while it forwards the packet. */
	PASS_NO_NEIGHBOUR,
	/* Dropped. */
	DROP_NO_BACKEND,
	DROP_NO_ROUTE,
	DROP_NO_NEIGHBOUR, /* dsr, ipip, gue, full_nat: the kernel would not forward the packet */
	DROP_MARTIAN,
	DROP_FRAGMENT,
	DROP_NO_PORT,
	DROP_LINK_DOWN,
	DROP_TOO_BIG,
	DROP_FILTERED,
	DROP_RATE_LIMITED,
	/* Answered. */
	TX_ECHO,
	TX_TOO_BIG,
	/* Forwarded, but not remembered. */
	FORWARD_FLOW_LIMIT,
	/* Dropped because filters are in use. */
	DROP_MALFORMED,
	DROP_EXTENSION_HEADERS,
	/* Dropped because the kernel would send them back. */
	DROP_VIP_UNSERVED,
	/* Rewritten, then passed: the kernel fragments the packet. */
	PASS_TOO_BIG,
	/* Passed untouched: the frame is not for the interface's Ethernet address. */
	PASS_OTHER_MAC,
	/* Forwarded by the previous lookup table. */
	FORWARD_HANDOVER,
	/* Dropped: the client is in none of the service's source ranges. */
	DROP_SOURCE_NOT_ALLOWED,
	/* Forwarded by the flow, since no backend of the service has the server id of the connection id. */
	FORWARD_QUIC_UNKNOWN_ID,
	/* Passed untouched: it claims to be a reply of a backend, but does not come from there. */
	PASS_REPLY_UNVERIFIED,
	/* The same; dropped because the kernel would send it back. */
	DROP_REPLY_UNVERIFIED,
	REASONS,
};

#endif
