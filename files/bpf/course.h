/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet is: for a service, an answer of one of its backends, or not ours. */
#ifndef LBOPS_COURSE_H
#define LBOPS_COURSE_H

#include "address.h"
#include "choose.h"
#include "clock.h"
#include "endpoints.h"
#include "fragments.h"
#include "icmp_error.h"
#include "layout.h"
#include "maps.h"
#include "packet.h"
#include "select.h"
#include "sessions.h"

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

#endif
