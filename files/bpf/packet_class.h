/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Classifies a packet: a request for a service, a reply of a backend, or not ours. docs/glossary.md has the classes. */
#ifndef LBOPS_PACKET_CLASS_H
#define LBOPS_PACKET_CLASS_H

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
/* Finds the session and backend that a packet to a source address replies to. Returns CHOSEN, or DROP_NO_PORT. */
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

enum packet_class {
	NOT_OURS,
	SERVICE_REQUEST,
	BACKEND_REPLY, /* dnat */
	SESSION_REPLY, /* full_nat */
};

/* Classifies a packet by its tuple. Sets the id of the service, or the backend or session in the choice. */
static __always_inline enum packet_class classify_tuple(const int family, const struct tuple *tuple, const void *table,
							__u32 *service, struct choice *choice)
{
	const __u32 *id = find_port_endpoint(family, table, ENDPOINT_SERVICE, tuple->destination, tuple->protocol,
					     tuple->destination_port);

	if (id) {
		*service = *id;
		return SERVICE_REQUEST;
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
		return BACKEND_REPLY;
#endif
	return NOT_OURS;
}

static __always_inline enum packet_class classify(const int family, const struct packet *packet, const void *table,
						  __u32 *service, struct choice *choice)
{
	struct tuple tuple = {
		.source = source_of(family, packet),
		.destination = destination_of(family, packet),
		.source_port = packet->udp->source,
		.destination_port = packet->udp->dest,
		.protocol = packet->protocol,
	};

	return classify_tuple(family, &tuple, table, service, choice);
}

/* A later fragment has the class of its packet's first fragment. */
static __always_inline enum packet_class classify_fragment(const int family, const struct packet *packet,
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
		return SERVICE_REQUEST;
	return choice->session ? SESSION_REPLY : BACKEND_REPLY;
}

/*
 * Classifies an ICMP error as a reply to the packet that it quotes would be: SERVICE_REQUEST if a backend sent the quoted
 * packet, a reply if the balancer forwarded it to a backend. The error must go to the source of the quoted packet.
 */
static __always_inline enum packet_class classify_error(const int family, const struct packet *packet,
							const void *table, struct quote *quote, struct flow *flow, __u32 *service,
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
	return classify_tuple(family, &tuple, table, service, choice);
}

#endif
