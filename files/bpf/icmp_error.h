/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about packets of a backend go to the VIP and quote at least 8 bytes of TCP or UDP (RFC 792); they are
 * forwarded to that backend. Errors about packets that the balancer forwarded come from the backend, or from a router
 * behind the balancer; they are forwarded to the client.
 */
#ifndef LBOPS_ICMP_ERROR_H
#define LBOPS_ICMP_ERROR_H

#include "address.h"
#include "choose.h"
#include "forward.h"
#include "packet.h"
#include "parse.h"

#define UNREACHABLE 3
#define TIME_EXCEEDED 11
#define PARAMETER_PROBLEM 12
#define ICMP6_ERRORS 4 /* 1 to 4 */

/* The packet that an ICMP error quotes. */
struct quote {
	union {
		void *network;
		struct iphdr *ip;
		struct ipv6hdr *ip6;
	};
	union {
		struct udphdr *udp; /* its ports are TCP's, too */
		struct tcphdr *tcp;
	};
	__u8 protocol;
};

static __always_inline int is_icmp_error(const int family, const struct packet *packet)
{
	__u8 type = packet->icmp->type;

	if (family == 4)
		return type == UNREACHABLE || type == TIME_EXCEEDED || type == PARAMETER_PROBLEM;
	return type >= 1 && type <= ICMP6_ERRORS;
}

/* Whether the packet has the bytes up to this end; the frame may be longer than the packet. */
static __always_inline int holds(const int family, const struct packet *packet, const void *end)
{
	return end - packet->network <= network_length(family, packet) && end <= packet->end;
}

/*
 * Whether the quote has a whole header and the ports of TCP or UDP. Extension headers are skipped as in a packet: a
 * fragment header with offset 0 is in front of the ports (RFC 8200, section 4.5).
 */
static __always_inline int parse_quote(const int family, const struct packet *packet, struct quote *quote)
{
	__u64 offset, protocol, unknown = packet->end - packet->network;
	struct parsed parsed = {};

	quote->network = packet->l4 + sizeof(struct icmphdr);
	if (family == 4) {
		if ((void *)(quote->ip + 1) > packet->end || quote->ip->version != 4 || quote->ip->ihl < 5 ||
		    quote->ip->frag_off & htons(IP_FRAGMENT_OFFSET))
			return 0;
		protocol = quote->ip->protocol;
		offset = quote->ip->ihl * 4;
	} else {
		if ((void *)(quote->ip6 + 1) > packet->end || quote->ip6->version != 6 ||
		    skip_extension_headers(quote->ip6, packet->end, &parsed) != PARSED ||
		    parsed.fragment == LATER_FRAGMENT)
			return 0;
		protocol = parsed.protocol;
		offset = parsed.network_length;
		FORGET(protocol, unknown);
		FORGET(offset, unknown);
	}
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return 0;
	quote->protocol = protocol;
	quote->udp = quote->network + (offset & MAX_EXTENSION_OFFSET);
	return holds(family, packet, quote->udp + 1);
}

static __always_inline __be32 *quoted_source(const int family, const struct quote *quote)
{
	return family == 4 ? &quote->ip->saddr : (__be32 *)&quote->ip6->saddr;
}

static __always_inline __be32 *quoted_destination(const int family, const struct quote *quote)
{
	return family == 4 ? &quote->ip->daddr : (__be32 *)&quote->ip6->daddr;
}

/* New addresses and ports of the quoted packet; an address that is NULL stays. */
struct quote_rewrite {
	const __be32 *source;
	const __be32 *destination;
	__be16 source_port;
	__be16 destination_port;
};

/* Updates a checksum of the quote, which is itself part of the ICMP message with this sum. */
static __always_inline void add_to_quoted(__sum16 *field, __u64 delta, int is_of_udp, __u64 *sum)
{
	__sum16 check = csum_add(*field, csum_fold_sum(delta));

	if (is_of_udp && !check)
		check = 0xffff;
	*sum += csum_port(*field, check);
	*field = check;
}

/* Adds the changes to the sum over the ICMP message. */
static __always_inline void rewrite_quote(const int family, const struct packet *packet, struct quote *quote,
					  const struct quote_rewrite *rewrite, __u64 *sum)
{
	__u64 addresses = 0, ports = csum_port(quote->udp->source, rewrite->source_port) +
				     csum_port(quote->udp->dest, rewrite->destination_port);

	if (rewrite->source) {
		addresses += csum_address(family, quoted_source(family, quote), rewrite->source);
		copy_address(family, quoted_source(family, quote), rewrite->source);
	}
	if (rewrite->destination) {
		addresses += csum_address(family, quoted_destination(family, quote), rewrite->destination);
		copy_address(family, quoted_destination(family, quote), rewrite->destination);
	}
	quote->udp->source = rewrite->source_port;
	quote->udp->dest = rewrite->destination_port;
	*sum += addresses + ports;
	if (family == 4)
		add_to_quoted(&quote->ip->check, addresses, 0, sum);
	if (quote->protocol == IPPROTO_UDP && quote->udp->check)
		add_to_quoted(&quote->udp->check, addresses + ports, 1, sum);
	/* A quote of 8 bytes has the ports, but not the checksum. */
	if (quote->protocol == IPPROTO_TCP && holds(family, packet, &quote->tcp->check + 1))
		add_to_quoted(&quote->tcp->check, addresses + ports, 0, sum);
}

/* The backend knows neither VIP nor, with full_nat, the client: it gets to see what it has sent. */
static __always_inline int forward_translated_error(hook_context *ctx, const int family, struct packet *packet,
						    struct quote *quote, const struct choice *choice)
{
	const struct backend *backend = choice->backend;
	struct rewrite rewrite = { .destination = backend->address, .ip_delta = backend->ip_delta };
	struct quote_rewrite quoted = {
		.source = backend->address,
		.source_port = backend->port ? backend->port : quote->udp->source,
		.destination_port = quote->udp->dest,
	};
	__u64 sum = 0;
	struct way way;
	int result = way_to_backend(ctx, family, backend, &way);

	result = check_length(ctx, family, packet, &way, result);
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return with_reason(DROP_TOO_BIG, DROP);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return with_reason(DROP_NO_ROUTE, DROP);
	/* ICMPv6's checksum is over a pseudo header with the addresses, too (RFC 4443, section 2.3). */
	if (family == 6)
		sum = csum_address(family, backend->vip, backend->address);
	rewrite_network(family, packet, &rewrite, result == BPF_FIB_LKUP_RET_SUCCESS);
	if (choice->session) {
		quoted.destination = backend->source;
		quoted.destination_port = session_source_port(backend, choice->number);
	}
	rewrite_quote(family, packet, quote, &quoted, &sum);
	packet->icmp->checksum = csum_add(packet->icmp->checksum, csum_fold_sum(sum));
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return with_reason(PASS_NO_NEIGHBOUR, PASS);
	count_forwarded(backend, way.counters, frame_bytes(ctx, packet));
	return set_out(ctx, packet, &way);
}

/*
 * The client knows neither the backend nor our source address, so the quote becomes the packet that the client sent. The
 * error gets the VIP as its source even if a router sent it (RFC 5508, REQ-5 c): filters in front of the balancer drop
 * private addresses.
 */
static __always_inline int forward_error_to_client(hook_context *ctx, const int family, struct packet *packet,
						   struct quote *quote, const struct choice *choice)
{
	const struct backend *backend = choice->backend;
	const struct session *session = choice->session;
	struct rewrite rewrite = { .source = backend->vip };
	struct quote_rewrite quoted = {
		.destination = backend->vip,
		.source_port = quote->udp->source,
		.destination_port = backend->vip_port ? backend->vip_port : quote->udp->dest,
	};
	__u64 addresses, sum = 0;
	__be32 client[4];
	struct way way;
	int result;

	if (*hop_limit(family, packet) <= 1)
		return with_reason(PASS_TTL_EXPIRED, PASS);
	copy_address(family, client, session ? session->client : destination_of(family, packet));
	result = way_to_client(ctx, family, client, &way);
	/* The error is about a packet of this host, a health check say. */
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return with_reason(PASS_LOCAL_REPLY, PASS);
	result = check_length(ctx, family, packet, &way, result);
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return with_reason(DROP_TOO_BIG, DROP);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return with_reason(DROP_NO_ROUTE, DROP);
	addresses = csum_address(family, source_of(family, packet), backend->vip);
	if (session) {
		addresses += csum_address(family, destination_of(family, packet), client);
		rewrite.destination = client;
		quoted.source = client;
		quoted.source_port = session->client_port;
		quoted.destination_port = session->vip_port;
	}
	rewrite.ip_delta = csum_fold_sum(addresses + TTL_STEP);
	if (family == 6)
		sum = addresses;
	rewrite_network(family, packet, &rewrite, result == BPF_FIB_LKUP_RET_SUCCESS);
	rewrite_quote(family, packet, quote, &quoted, &sum);
	packet->icmp->checksum = csum_add(packet->icmp->checksum, csum_fold_sum(sum));
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return with_reason(PASS_NO_NEIGHBOUR, PASS);
	count_reply(backend, frame_bytes(ctx, packet));
	return set_out(ctx, packet, &way);
}

#endif
