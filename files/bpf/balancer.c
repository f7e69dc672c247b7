// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The balancer: a packet for a service goes to one of its backends, a backend's reply gets the VIP back, an echo
 * request for a VIP is answered; everything else passes untouched. docs/data-plane.md is its contract.
 *
 * BCC compiles this file on the target with the features in use as -D: FEATURE_DNAT, FEATURE_FULL_NAT, FEATURE_DSR,
 * FEATURE_IPIP, FEATURE_REDIRECT, FEATURE_IPV6, FEATURE_ROUND_ROBIN, FEATURE_FLOW_TABLE, FEATURE_ANY_PORT,
 * FEATURE_FILTERS, FEATURE_MULTI_BUFFER, FEATURE_LATENCY, FEATURE_TABLE_SIZE; HOOK_TC for that hook; and the sizes that
 * layout.h names. The family of a packet is a constant wherever it is passed on, so each has code of its own.
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
#include "packet.h"
#include "parse.h"
#include "verifier.h"

/* No host on a network sends from such an address (RFC 6890); nor does the VIP send to itself. */
static __always_inline int is_martian(const int family, const struct packet *packet)
{
	const __be32 *source = source_of(family, packet);
	__u8 first = *(const __u8 *)source;

	if (family == 4)
		return first == 0 || first == 127 || first >= 224 || *source == packet->ip->daddr;
	if (first == 0xff || same_address(family, source, destination_of(family, packet)))
		return 1;
	return !(source[0] | source[1] | source[2] | (source[3] & ~htonl(1)));
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

/* Addresses, ports and protocol of a packet. */
struct tuple {
	const __be32 *source;
	const __be32 *destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
};

#ifdef FEATURE_FULL_NAT
/* The session that a packet to one of our source addresses answers: CHOSEN, with it and its backend, or not. */
static __always_inline int find_answered(const int family, const struct tuple *tuple, __u32 pool_id,
					 struct choice *choice)
{
	struct pool *pool = lookup(MAP_POOLS, pool_id);
	__u32 place;

	if (!pool)
		return DROP_NO_PORT;
	place = (__u32)ntohs(tuple->destination_port) - pool->first_port;
	if (place >= pool->ports)
		return DROP_NO_PORT;
	choice->number = pool->first_session + place;
	choice->session = live_session(choice->number, clock_ticks());
	if (!choice->session || choice->session->protocol != tuple->protocol)
		return DROP_NO_PORT;
	choice->backend = session_backend(choice->session);
	if (!choice->backend || !same_address(family, tuple->source, choice->backend->address))
		return DROP_NO_PORT;
	if (tuple->source_port != (choice->backend->port ? choice->backend->port : choice->session->vip_port))
		return DROP_NO_PORT;
	return CHOSEN;
}
#endif

/* What a packet with ports is. */
enum course {
	NOT_OURS,
	TO_SERVICE,
	REPLY,         /* of a dnat backend */
	SESSION_REPLY, /* full_nat */
};

/* With the id of the service, or the backend or session in the choice. */
static __always_inline enum course find_course_of(const int family, const struct tuple *tuple, const void *table,
						  __u32 *service, struct choice *choice)
{
	const __u32 *id = find_port_endpoint(family, table, ENDPOINT_SERVICE, tuple->destination, tuple->protocol,
					     tuple->destination_port);

	if (id) {
		*service = *id;
		return TO_SERVICE;
	}
#ifdef FEATURE_FULL_NAT
	id = find_endpoint(family, table, ENDPOINT_SOURCE, tuple->destination, 0, 0);
	if (id && find_answered(family, tuple, *id, choice) == CHOSEN)
		return SESSION_REPLY;
	choice->session = NULL;
#endif
#ifdef FEATURE_DNAT
	id = find_port_endpoint(family, table, ENDPOINT_BACKEND, tuple->source, tuple->protocol, tuple->source_port);
	if (id && take(choice, *id) == CHOSEN)
		return REPLY;
#endif
	return NOT_OURS;
}

static __always_inline enum course find_course(const int family, const struct packet *packet, const void *table,
					       __u32 *service, struct choice *choice)
{
	struct tuple tuple = {
		.source = source_of(family, packet),
		.destination = destination_of(family, packet),
		.source_port = packet->udp->source,
		.destination_port = packet->udp->dest,
		.protocol = packet->protocol,
	};

	return find_course_of(family, &tuple, table, service, choice);
}

/* What a fragment without ports is: whatever its packet's first was. */
static __always_inline enum course find_fragment_course(const int family, const struct packet *packet,
							struct choice *choice)
{
	__u32 number = recall_fragment(family, packet), id = number;

#ifdef FEATURE_FULL_NAT
	if (number & FLOW_IS_SESSION) {
		choice->number = number - FLOW_IS_SESSION;
		choice->session = live_session(choice->number, clock_ticks());
		id = choice->session && session_backend(choice->session) ? choice->session->backend : 0;
	}
#endif
	if (take(choice, id) != CHOSEN)
		return NOT_OURS;
	if (same_address(family, destination_of(family, packet), choice->backend->vip))
		return TO_SERVICE;
	return choice->session ? SESSION_REPLY : REPLY;
}

static __always_inline int send_answer(hook_context *ctx, const int family, struct packet *packet,
				       const struct choice *choice, enum course course, int has_ports)
{
#ifdef FEATURE_FULL_NAT
	if (course == SESSION_REPLY && choice->session)
		return forward_session_reply(ctx, family, packet, choice->backend, choice->session, has_ports);
#endif
#ifdef FEATURE_DNAT
	if (course == REPLY)
		return forward_reply(ctx, family, packet, choice->backend, has_ports);
#endif
	return count_reason(PASS_NOT_OURS, PASS);
}

/* A fragment whose first went unseen can reach nobody here; those of other packets are not our business. */
static __always_inline int lone_fragment(const int family, const struct packet *packet, const void *table)
{
	if (is_vip(family, table, destination_of(family, packet)))
		return count_reason(DROP_FRAGMENT, DROP);
#ifdef FEATURE_FULL_NAT
	if (find_endpoint(family, table, ENDPOINT_SOURCE, destination_of(family, packet), 0, 0))
		return count_reason(DROP_FRAGMENT, DROP);
#endif
	return count_reason(PASS_NOT_OURS, PASS);
}

/*
 * An ICMP error has the course of an answer to the packet that it quotes: to a service if a backend sent that packet in
 * the VIP's name, a reply if a client did. Its destination is the sender of the quoted packet.
 */
static __always_inline enum course find_error_course(const int family, const struct packet *packet, const void *table,
						     struct quote *quote, struct flow *flow, __u32 *service,
						     struct choice *choice)
{
	struct tuple tuple;

	if (!is_icmp_error(family, packet) || !parse_quote(family, packet, quote) ||
	    !same_address(family, quoted_source(family, quote), destination_of(family, packet)))
		return NOT_OURS;
	tuple.source = quoted_destination(family, quote);
	tuple.destination = quoted_source(family, quote);
	tuple.source_port = quote->udp->dest;
	tuple.destination_port = quote->udp->source;
	tuple.protocol = quote->protocol;
	copy_address(family, flow->client, tuple.source);
	flow->client_port = tuple.source_port;
	flow->port = tuple.destination_port;
	return find_course_of(family, &tuple, table, service, choice);
}

/*
 * Most packets: TCP or UDP in one piece, without tags, options or extension headers. All offsets are constants, so
 * the compiler makes this a program of its own within the program.
 */
static __always_inline int handle_plain(hook_context *ctx, const int family, struct packet *packet)
{
	void *table = endpoint_table(family);
	struct choice choice = {};
	enum course course;
	struct flow flow;
	__u32 service;
	int reason;

#ifdef FEATURE_FILTERS
	if (is_filtered(family, packet))
		return DROP;
#endif
	if (!table)
		return count_reason(PASS_NOT_OURS, PASS);
	course = find_course(family, packet, table, &service, &choice);
	if (course == NOT_OURS)
		return count_reason(PASS_NOT_OURS, PASS);
	if (course != TO_SERVICE)
		return send_answer(ctx, family, packet, &choice, course, 1);
	if (is_martian(family, packet))
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

/* The others. */
static __always_inline int handle_any(hook_context *ctx, const int family, struct parsed *parsed)
{
	struct packet packet = {};
	int reason = parse_ip(ctx, family, parsed, &packet), has_ports = 1;
	void *table = endpoint_table(family);
	struct choice choice = {};
	struct quote quote = {};
	enum course course;
	struct flow flow = {};
	__u32 service = 0;

	if (reason == PASS_MALFORMED)
		return count_reason(reason, PASS);
	FORGET(reason, packet.protocol);
#ifdef FEATURE_FILTERS
	if (is_filtered(family, &packet))
		return DROP;
#endif
	if (reason != PARSED)
		return count_reason(reason, PASS);
	if (!table)
		return count_reason(PASS_NOT_OURS, PASS);
	if (packet.fragment != LATER_FRAGMENT && !has_l4(&packet))
		return count_reason(PASS_MALFORMED, PASS);
	if (packet.fragment && is_icmp(family, &packet))
		return count_reason(PASS_NOT_OURS, PASS);
	if (packet.fragment == LATER_FRAGMENT) {
		course = find_fragment_course(family, &packet, &choice);
		if (course == NOT_OURS)
			return lone_fragment(family, &packet, table);
		if (course == TO_SERVICE && !outlives_hop(family, &packet, choice.backend))
			return count_reason(PASS_TTL_EXPIRED, PASS);
		has_ports = 0;
	} else if (is_icmp(family, &packet)) {
		if (is_echo_request(family, &packet) && is_vip(family, table, destination_of(family, &packet)))
			return answer_echo(ctx, family, &packet);
		course = find_error_course(family, &packet, table, &quote, &flow, &service, &choice);
		if (course == NOT_OURS)
			return count_reason(PASS_NOT_OURS, PASS);
		if (is_martian(family, &packet))
			return count_reason(DROP_MARTIAN, DROP);
#if defined(FEATURE_DNAT) || defined(FEATURE_FULL_NAT)
		if (course != TO_SERVICE)
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
		course = find_course(family, &packet, table, &service, &choice);
		if (course == NOT_OURS)
			return count_reason(PASS_NOT_OURS, PASS);
		if (course == TO_SERVICE) {
			if (is_martian(family, &packet))
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
	if (course != TO_SERVICE)
		return send_answer(ctx, family, &packet, &choice, course, has_ports);
	return forward(ctx, family, &packet, &choice, has_ports);
}

static __always_inline int handle(hook_context *ctx)
{
	struct parsed parsed = {};
	struct packet packet = {};
	__be16 type;

	pull_headers(ctx);
	if (parse_plain(ctx, 4, &packet))
		return handle_plain(ctx, 4, &packet);
#ifdef FEATURE_IPV6
	if (parse_plain(ctx, 6, &packet))
		return handle_plain(ctx, 6, &packet);
#endif
	type = parse_link(ctx, &parsed);
	if (type == htons(ETH_P_IP))
		return handle_any(ctx, 4, &parsed);
#ifdef FEATURE_IPV6
	if (type == htons(ETH_P_IPV6))
		return handle_any(ctx, 6, &parsed);
#endif
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
