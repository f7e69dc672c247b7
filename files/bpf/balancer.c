// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The balancer: a packet for a service goes to one of its backends, a backend's reply gets the VIP back, an echo
 * request for a VIP is answered; everything else is left to the kernel, or dropped where the kernel would send it back.
 * docs/data-plane.md is its contract.
 *
 * BCC compiles this file on the target with the features in use as -D: FEATURE_DNAT, FEATURE_FULL_NAT, FEATURE_DSR,
 * FEATURE_IPIP, FEATURE_REDIRECT, FEATURE_IPV6, FEATURE_ROUND_ROBIN, FEATURE_FLOW_TABLE, FEATURE_ANY_PORT,
 * FEATURE_FILTERS, FEATURE_MULTI_BUFFER, FEATURE_LATENCY, FEATURE_TABLE_SIZE, FEATURE_UNSERVED_PASS; HOOK_TC for that
 * hook; and the sizes that layout.h names. The family of a packet is a constant wherever it is passed on, so each has
 * code of its own.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "address.h"
#include "choose.h"
#include "count.h"
#include "echo.h"
#include "endpoints.h"
#include "filter.h"
#include "forward.h"
#include "fragments.h"
#include "icmp_error.h"
#include "ipip.h"
#include "latency.h"
#include "layout.h"
#include "martian.h"
#include "not_ours.h"
#include "packet.h"
#include "packet_class.h"
#include "parse.h"
#include "too_big.h"
#include "verifier.h"

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
#ifdef FEATURE_DSR
	case FORWARDING_DSR:
		return forward_dsr(ctx, family, packet, choice);
#endif
#ifdef FEATURE_IPIP
	case FORWARDING_IPIP:
		return forward_ipip(ctx, family, packet, choice);
#endif
#ifdef FEATURE_REDIRECT
	case FORWARDING_REDIRECT:
		return forward_redirect(ctx, packet, choice);
#endif
	}
	return count_reason(DROP_NO_BACKEND, DROP);
}

static __always_inline void flow_of(const int family, const struct packet *packet, struct flow *flow)
{
	copy_address(family, flow->client, source_of(family, packet));
	flow->client_port = packet->udp->source;
	flow->port = packet->udp->dest;
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
	return count_reason(PASS_NOT_OURS, PASS);
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
	if (!table)
		return count_reason(PASS_NOT_OURS, PASS);
	class = classify(family, packet, table, &service, &choice);
	if (class == NOT_OURS)
		return pass_unless_loop(ctx, family, packet, table, PASS_NOT_OURS);
	if (class != SERVICE_REQUEST)
		return send_answer(ctx, family, packet, &choice, class, 1);
	if (is_martian(family, packet, table))
		return count_reason(DROP_MARTIAN, DROP);
	flow_of(family, packet, &flow);
	reason = choose(family, packet, service, &flow, &choice);
	if (reason != CHOSEN)
		return not_chosen(reason);
	return forward(ctx, family, packet, &choice, 1);
}

static __always_inline int outlives_hop(const int family, const struct packet *packet, const struct backend *backend)
{
	return *hop_limit(family, packet) > 1 || backend->forwarding == FORWARDING_DSR ||
	       backend->forwarding == FORWARDING_REDIRECT;
}

/* Sends the ICMP error of a marked packet. One call for all modes, because it is much code. */
static __always_inline int answer_if_too_big(hook_context *ctx, const int family, const struct packet *packet,
					     int verdict)
{
	return packet->reported_mtu ? answer_too_big(ctx, family, packet) : verdict;
}

/* The others. */
static __always_inline int handle_any(hook_context *ctx, const int family, struct parsed *parsed)
{
	struct packet packet = {};
	int reason = parse_ip(ctx, family, parsed, &packet), has_ports = 1, verdict;
	void *table = endpoint_table(family);
	struct choice choice = {};
	struct quote quote = {};
	enum packet_class class;
	struct flow flow = {};
	__u32 service = 0;

	if (reason == UNREADABLE)
		return pass_unless_filters(PASS_MALFORMED, DROP_MALFORMED);
	FORGET(reason, packet.protocol);
#ifdef FEATURE_FILTERS
	if (is_filtered(family, &packet))
		return DROP;
#endif
	if (reason != PARSED)
		return handle_unparsed(ctx, family, &packet, table, reason);
	if (packet.fragment != LATER_FRAGMENT && !has_l4(&packet))
		return handle_unparsed(ctx, family, &packet, table, PASS_MALFORMED);
	/* Only the first IPv6 fragment has the upper-layer protocol, so a later one is looked up first. */
	if (!table || (packet.fragment && is_icmp(family, &packet) && (family == 4 || packet.fragment == FIRST_FRAGMENT)))
		goto not_ours;
	if (packet.fragment == LATER_FRAGMENT) {
		class = classify_fragment(family, &packet, &choice);
		if (class == NOT_OURS)
			goto not_ours;
		if (class == SERVICE_REQUEST && !outlives_hop(family, &packet, choice.backend))
			return count_reason(PASS_TTL_EXPIRED, PASS);
		has_ports = 0;
	} else if (is_icmp(family, &packet)) {
		if (is_echo_request(family, &packet) && is_vip(family, table, destination_of(family, &packet))) {
			if (is_martian(family, &packet, table))
				return count_reason(DROP_MARTIAN, DROP);
			return answer_echo(ctx, family, &packet);
		}
		class = classify_error(family, &packet, table, &quote, &flow, &service, &choice);
		if (class == NOT_OURS)
			goto not_ours;
		if (is_martian_for_error(family, &packet, table))
			return count_reason(DROP_MARTIAN, DROP);
#if defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT)
		if (class != SERVICE_REQUEST)
			return forward_error_to_client(ctx, family, &packet, &quote, &choice);
#endif
		reason = choose_for_error(family, &packet, service, &flow, &choice);
		if (reason != CHOSEN)
			return not_chosen(reason);
#if defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT)
		if (choice.backend->forwarding == FORWARDING_DNAT ||
		    choice.backend->forwarding == FORWARDING_FULL_NAT)
			return forward_translated_error(ctx, family, &packet, &quote, &choice);
#endif
		has_ports = 0;
	} else {
		class = classify(family, &packet, table, &service, &choice);
		if (class == NOT_OURS)
			goto not_ours;
		if (class == SERVICE_REQUEST) {
			if (is_martian(family, &packet, table))
				return count_reason(DROP_MARTIAN, DROP);
			flow_of(family, &packet, &flow);
			reason = choose(family, &packet, service, &flow, &choice);
			if (reason != CHOSEN)
				return not_chosen(reason);
		}
		if (packet.fragment)
			remember_fragment(family, &packet,
					  choice.session ? choice.number | FLOW_IS_SESSION : choice.id);
	}
	if (class != SERVICE_REQUEST)
		verdict = send_answer(ctx, family, &packet, &choice, class, has_ports);
	else
		verdict = forward(ctx, family, &packet, &choice, has_ports);
	return answer_if_too_big(ctx, family, &packet, verdict);

not_ours:
	return pass_unless_loop(ctx, family, &packet, table, PASS_NOT_OURS);
}

static __always_inline int handle(hook_context *ctx)
{
	struct parsed parsed = {};
	struct packet packet = {};
	__be16 type;

	pull_headers(ctx);
	if (parse_plain(ctx, 4, &packet))
		return answer_if_too_big(ctx, 4, &packet, handle_plain(ctx, 4, &packet));
#ifdef FEATURE_IPV6
	if (parse_plain(ctx, 6, &packet))
		return answer_if_too_big(ctx, 6, &packet, handle_plain(ctx, 6, &packet));
#endif
	type = parse_link(ctx, &parsed);
	if (type == htons(ETH_P_IP))
		return handle_any(ctx, 4, &parsed);
#ifdef FEATURE_IPV6
	if (type == htons(ETH_P_IPV6))
		return handle_any(ctx, 6, &parsed);
#endif
	if (is_tag(type))
		return pass_unless_filters(PASS_NOT_IP, DROP_MALFORMED);
	return count_reason(PASS_NOT_IP, PASS);
}

int balancer(hook_context *ctx)
{
#ifdef FEATURE_LATENCY
	__u64 start = start_clock();
	int verdict = handle(ctx);

	stop_clock(start);
	return verdict;
#else
	return handle(ctx);
#endif
}

#include "search.h"
