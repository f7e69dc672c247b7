/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP in one piece: echo requests for VIPs, and errors about packets of services. */
#ifndef LBOPS_ICMP_H
#define LBOPS_ICMP_H

#include "choose.h"
#include "count.h"
#include "echo.h"
#include "endpoints.h"
#include "icmp_error.h"
#include "layout.h"
#include "martian.h"
#include "not_ours.h"
#include "packet.h"
#include "packet_class.h"
#include "parse.h"
#include "reply_check.h"
#include "transport.h"

static __always_inline int handle_icmp(hook_context *ctx, const int family, struct packet *packet)
{
	void *table = endpoint_table(family);
	struct choice choice = {};
	struct quote quote = {};
	enum packet_class class;
	struct flow flow = {};
	__u32 service = 0;
	int reason;

	if (!has_l4(packet))
		return handle_unparsed(ctx, family, packet, table, PASS_MALFORMED);
	if (!table)
		return with_reason(PASS_NOT_OURS, PASS);
	if (is_echo_request(family, packet) && is_vip(family, table, destination_of(family, packet))) {
		if (is_martian(family, packet, table))
			return with_reason(DROP_MARTIAN, DROP);
		return answer_echo(ctx, family, packet);
	}
	class = classify_error(family, packet, table, &quote, &flow, &service, &choice);
	if (class == NOT_OURS)
		return pass_unless_loop(ctx, family, packet, table, PASS_NOT_OURS);
	if (is_martian_for_error(family, packet, table))
		return with_reason(DROP_MARTIAN, DROP);
#if defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT)
	if (class != SERVICE_REQUEST) {
		/* Routers behind the balancer may send errors as well, and nothing tells which ones are there. */
		if (same_address(family, source_of(family, packet), choice.backend->address) &&
		    !is_from_backend(ctx, family, packet, choice.backend))
			return pass_unless_loop(ctx, family, packet, table, PASS_REPLY_UNVERIFIED);
		return forward_error_to_client(ctx, family, packet, &quote, &choice);
	}
#endif
	reason = choose_for_error(family, packet, service, &flow, &choice);
	if (reason != CHOSEN)
		return not_chosen(reason);
#if defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT)
	if (choice.backend->forwarding == FORWARDING_DNAT || choice.backend->forwarding == FORWARDING_FULL_NAT)
		return forward_translated_error(ctx, family, packet, &quote, &choice);
#endif
	return forward_unchanged(ctx, family, packet, &choice);
}

#endif
