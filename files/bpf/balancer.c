// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The balancer: a packet for a service goes to one of its backends, a backend's reply gets the VIP back, an echo
 * request for a VIP is answered; everything else is left to the kernel, or dropped where the kernel would send it back.
 * docs/data-plane.md is its contract.
 *
 * BCC compiles this file on the target with the features in use as -D: FEATURE_DNAT, FEATURE_FULL_NAT, FEATURE_DSR,
 * FEATURE_IPIP, FEATURE_GUE, FEATURE_REDIRECT, FEATURE_IPV6, FEATURE_ROUND_ROBIN, FEATURE_FLOW_TABLE,
 * FEATURE_ANY_PORT, FEATURE_FILTERS, FEATURE_MULTI_BUFFER, FEATURE_LATENCY, FEATURE_TABLE_SIZE, FEATURE_AFFINITY,
 * FEATURE_QUIC, FEATURE_UNSERVED_PASS, FEATURE_HANDOVER, FEATURE_LOCAL, FEATURE_SOURCE_RANGES, FEATURE_NEXT_PROGRAM,
 * FEATURE_REPLY_INTERFACE, FEATURE_REPLY_UNCHECKED; HOOK_TC for that hook; HASH_SEED, see select.h; and the sizes that
 * layout.h names. The family of a packet is a constant wherever it is passed on, so each has code of its own.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/if_packet.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "count.h"
#include "ethernet_destination.h"
#include "filter.h"
#include "icmp.h"
#include "latency.h"
#include "layout.h"
#include "next_program.h"
#include "not_ours.h"
#include "packet.h"
#include "parse.h"
#include "too_big.h"
#include "transport.h"
#include "verifier.h"

/* Returns PARSED, FILTERED, UNREADABLE or a reason. */
static __always_inline int parse_and_filter(hook_context *ctx, const int family, struct parsed *parsed)
{
	struct packet packet = {};
	int reason = parse_ip(ctx, family, parsed, &packet);

	if (reason == UNREADABLE)
		return UNREADABLE;
#ifdef FEATURE_FILTERS
	if (is_filtered_by_call(family, &packet))
		return FILTERED;
#endif
	return reason;
}

/* Packets that are not plain. */
static __always_inline int handle_other(hook_context *ctx, const int family, struct parsed *parsed,
					struct packet *packet)
{
	int reason = parse_and_filter(ctx, family, parsed);

	if (reason == FILTERED)
		return DROP;
	if (reason == UNREADABLE || point(ctx, family, parsed, packet) != PARSED)
		return pass_unless_filters(PASS_MALFORMED, DROP_MALFORMED);
	FORGET(reason, packet->protocol);
	if (!is_for_interface(ctx, packet->eth))
		return reason == PARSED ? with_reason(PASS_OTHER_MAC, PASS) :
					  handle_unparsed(ctx, family, packet, NULL, reason);
	if (reason == PARSED && !packet->fragment && is_icmp(family, packet))
		return handle_icmp(ctx, family, packet);
	return handle_transport(ctx, family, packet, reason);
}

/* Returns a verdict or ANSWER_TOO_BIG: the code for the answer is much, and has one place behind this. */
static __always_inline int handle_frame(hook_context *ctx, struct packet *packet, int *family)
{
	struct parsed parsed = {};
	__be16 type;

	*family = 4;
	if (parse_plain(ctx, 4, packet))
		return handle_plain(ctx, 4, packet);
#ifdef FEATURE_IPV6
	/* Puts the code for all other packets behind the program's end, or jumps to that would be too long. */
	if (__builtin_expect(parse_plain(ctx, 6, packet), 1)) {
		*family = 6;
		return handle_plain(ctx, 6, packet);
	}
#endif
	type = parse_link(ctx, &parsed);
	if (type == htons(ETH_P_IP))
		return handle_other(ctx, 4, &parsed, packet);
#ifdef FEATURE_IPV6
	if (type == htons(ETH_P_IPV6)) {
		*family = 6;
		return handle_other(ctx, 6, &parsed, packet);
	}
#endif
	if (is_tag(type))
		return pass_unless_filters(PASS_NOT_IP, DROP_MALFORMED);
	return with_reason(PASS_NOT_IP, PASS);
}

static __always_inline int handle(hook_context *ctx)
{
	struct packet packet = {};
	int family, verdict;

	pull_headers(ctx);
	verdict = handle_frame(ctx, &packet, &family);
	if (!has_reason(verdict))
		return verdict;
	if (verdict == ANSWER_TOO_BIG) {
#ifdef FEATURE_IPV6
		if (family == 6)
			return count_verdict(answer_too_big(ctx, 6, &packet));
#endif
		return count_verdict(answer_too_big(ctx, 4, &packet));
	}
	return count_verdict(verdict);
}

int balancer(hook_context *ctx)
{
	__u64 start = start_clock();
	int verdict = handle(ctx);

	stop_clock(start);
	return call_next_program(ctx, verdict);
}

#include "subprograms.h"
