/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP and UDP: requests for services, replies of backends, and fragments of any protocol. */
#ifndef LBOPS_TRANSPORT_H
#define LBOPS_TRANSPORT_H

#include "address.h"
#include "choose.h"
#include "count.h"
#include "endpoints.h"
#include "ethernet_destination.h"
#include "filter.h"
#include "forward.h"
#include "fragments.h"
#include "layout.h"
#include "martian.h"
#include "not_ours.h"
#include "packet.h"
#include "packet_class.h"
#include "parse.h"
#include "reply_check.h"
#include "tunnel.h"
#include "verifier.h"

/* Modes in which the packet itself stays as it is. */
static __always_inline int forward_unchanged(hook_context *ctx, const int family, struct packet *packet,
					     const struct choice *choice)
{
	__u32 gue_bytes = 0;

	switch (choice->backend->forwarding) {
#ifdef FEATURE_DSR
	case FORWARDING_DSR:
		return forward_dsr(ctx, family, packet, choice);
#endif
#ifdef FEATURE_GUE
	case FORWARDING_GUE:
		gue_bytes = sizeof(struct gue);
		/* One copy of the code for both; falls through. */
#endif
#ifdef FEATURE_IPIP
	case FORWARDING_IPIP:
#endif
#if defined(FEATURE_IPIP) || defined(FEATURE_GUE)
		return forward_in_tunnel(ctx, family, packet, choice, gue_bytes);
#endif
#ifdef FEATURE_REDIRECT
	case FORWARDING_REDIRECT:
		return forward_redirect(ctx, packet, choice);
#endif
#ifdef FEATURE_LOCAL
	case FORWARDING_LOCAL:
		return pass_to_host(ctx, packet, choice);
#endif
	}
	return with_reason(DROP_NO_BACKEND, DROP);
}

static __always_inline int forward(hook_context *ctx, const int family, struct packet *packet,
				   const struct choice *choice, int has_ports)
{
	switch (choice->backend->forwarding) {
#ifdef FEATURE_DNAT
	case FORWARDING_DNAT:
		return forward_dnat(ctx, family, packet, choice, has_ports);
#endif
#ifdef FEATURE_FULL_NAT
	case FORWARDING_FULL_NAT:
		return forward_full_nat(ctx, family, packet, choice, has_ports);
#endif
	}
	return forward_unchanged(ctx, family, packet, choice);
}

static __always_inline int send_answer(hook_context *ctx, const int family, struct packet *packet,
				       const struct choice *choice, enum packet_class class, int has_ports)
{
#ifdef FEATURE_FULL_NAT
	if (class == SESSION_REPLY && choice->session)
		return forward_session_reply(ctx, family, packet, choice->backend, choice->session, has_ports);
#endif
#ifdef FEATURE_DNAT
	if (class == BACKEND_REPLY)
		return forward_reply(ctx, family, packet, choice->backend, has_ports);
#endif
	return with_reason(PASS_NOT_OURS, PASS);
}

/*
 * Most packets: TCP or UDP in one piece, without tags, options or extension headers. All offsets are constants, so
 * the compiler makes this a program of its own within the program.
 */
static __always_inline int handle_plain(hook_context *ctx, const int family, struct packet *packet)
{
	void *table = endpoint_table(family);
	struct choice choice = {};
	enum packet_class class;
	struct flow flow;
	__u32 service;
	int reason;

#ifdef FEATURE_FILTERS
	if (is_filtered(family, packet))
		return DROP;
#endif
	if (!is_for_interface(ctx, packet->eth))
		return with_reason(PASS_OTHER_MAC, PASS);
	if (!table)
		return with_reason(PASS_NOT_OURS, PASS);
	class = classify(family, packet, table, &service, &choice);
	reason = PASS_NOT_OURS;
	if (class != NOT_OURS && class != SERVICE_REQUEST) {
		if (is_from_backend(ctx, family, packet, choice.backend))
			return send_answer(ctx, family, packet, &choice, class, 1);
		class = NOT_OURS;
		reason = PASS_REPLY_UNVERIFIED;
	}
	if (class == NOT_OURS)
		return pass_unless_loop(ctx, family, packet, table, reason);
	if (is_martian(family, packet, table))
		return with_reason(DROP_MARTIAN, DROP);
	flow_of(family, packet, &flow);
	reason = choose(family, packet, table, service, &flow, &choice);
	if (reason != CHOSEN)
		return not_chosen(reason);
	return forward(ctx, family, packet, &choice, 1);
}

static __always_inline int outlives_hop(const int family, const struct packet *packet, const struct backend *backend)
{
	return *hop_limit(family, packet) > 1 || backend->forwarding == FORWARDING_DSR ||
	       backend->forwarding == FORWARDING_REDIRECT || is_local(backend);
}

/* The others that have ports, fragments, and what could not be parsed for this reason. */
static __always_inline int handle_transport(hook_context *ctx, const int family, struct packet *packet, int reason)
{
	void *table = endpoint_table(family);
	struct choice choice = {};
	enum packet_class class;
	struct flow flow = {};
	__u32 service = 0;
	int has_ports = 1;

	if (reason != PARSED)
		return handle_unparsed(ctx, family, packet, table, reason);
	reason = PASS_NOT_OURS;
	if (packet->fragment == LATER_FRAGMENT) {
		/* Only the first IPv6 fragment has the upper-layer protocol, so a later one is looked up first. */
		if (!table || (family == 4 && is_icmp(family, packet)))
			goto not_ours;
		class = classify_fragment(family, packet, &choice);
		if (class == NOT_OURS)
			goto not_ours;
		if (class != SERVICE_REQUEST && !is_from_backend(ctx, family, packet, choice.backend))
			goto unverified;
		if (class == SERVICE_REQUEST && !outlives_hop(family, packet, choice.backend))
			return with_reason(PASS_TTL_EXPIRED, PASS);
		has_ports = 0;
	} else {
		if (!has_l4(packet))
			return handle_unparsed(ctx, family, packet, table, PASS_MALFORMED);
		if (!table || is_icmp(family, packet))
			goto not_ours;
		class = classify(family, packet, table, &service, &choice);
		if (class == NOT_OURS)
			goto not_ours;
		if (class == SERVICE_REQUEST) {
			if (is_martian(family, packet, table))
				return with_reason(DROP_MARTIAN, DROP);
			flow_of(family, packet, &flow);
			reason = choose(family, packet, table, service, &flow, &choice);
			if (reason != CHOSEN)
				return not_chosen(reason);
		} else if (!is_from_backend(ctx, family, packet, choice.backend)) {
			goto unverified;
		}
		if (packet->fragment)
			remember_fragment(family, packet,
					  choice.session ? choice.number | FLOW_IS_SESSION : choice.id);
	}
	if (class != SERVICE_REQUEST)
		return send_answer(ctx, family, packet, &choice, class, has_ports);
	return forward(ctx, family, packet, &choice, has_ports);

unverified:
	reason = PASS_REPLY_UNVERIFIED;
not_ours:
	return pass_unless_loop(ctx, family, packet, table, reason);
}

#endif
