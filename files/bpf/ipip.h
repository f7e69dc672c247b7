/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A header in front of the packet takes it to the backend: IPv4 (RFC 2003) or IPv6 (RFC 2473). */
#ifndef LBOPS_IPIP_H
#define LBOPS_IPIP_H

#include "address.h"
#include "choose.h"
#include "count.h"
#include "csum.h"
#include "link_header.h"
#include "packet.h"
#include "random.h"
#include "too_big.h"

/* What the outer header takes over from the inner one. */
struct inner {
	__u32 length;
	__u8 tos;
	__be16 identification;
	__be16 dont_fragment;
	__u8 protocol; /* as the outer header calls it */
};

static __always_inline __u8 traffic_class(const struct packet *packet)
{
	return ntohl(*(__be32 *)packet->network) >> 20;
}

static __always_inline void look_inside(const int family, const struct packet *packet, struct inner *inner)
{
	inner->length = network_length(family, packet);
	if (family == 4) {
		inner->tos = packet->ip->tos;
		inner->identification = 0;
		inner->dont_fragment = packet->ip->frag_off & htons(IP_DONT_FRAGMENT);
		inner->protocol = IPPROTO_IPIP;
	} else {
		inner->tos = traffic_class(packet);
		/*
		 * Links that carry IPv6 take 1280 bytes, so routers may fragment the outer packet (RFC 4213, section 3.2).
		 * Its fragments are told apart by the identification (RFC 6864).
		 */
		inner->identification = random_number();
		inner->dont_fragment = 0;
		inner->protocol = IPPROTO_IPV6;
	}
}

static __always_inline __be32 flow_source(const struct backend *backend, __be32 base, __u64 hash)
{
	return base | ((__u32)(hash >> 32) & backend->source_mask);
}

static __always_inline int put_ip4(hook_context *ctx, const struct link_header *link, const struct inner *inner,
				   const struct backend *backend, __u64 hash)
{
	struct iphdr *ip = put_link_header(ctx, link, htons(ETH_P_IP), sizeof(*ip));
	__be32 source = flow_source(backend, backend->source[0], hash);

	if (!ip)
		return DROP;
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = inner->tos;
	ip->tot_len = htons(inner->length + sizeof(*ip));
	ip->id = inner->identification;
	ip->frag_off = inner->dont_fragment;
	ip->ttl = DEFAULT_TTL;
	ip->protocol = inner->protocol;
	ip->saddr = source;
	ip->daddr = backend->address[0];
	/* Version, TTL, protocol and destination are summed up already. */
	ip->check = ~csum_fold_sum((__u64)backend->header_sum + source + htons(inner->tos) +
				   htons(inner->length + sizeof(*ip)) + inner->identification + inner->dont_fragment);
	return 0;
}

static __always_inline int put_ip6(hook_context *ctx, const struct link_header *link, const struct inner *inner,
				   const struct backend *backend, __u64 hash)
{
	struct ipv6hdr *ip6 = put_link_header(ctx, link, htons(ETH_P_IPV6), sizeof(*ip6));
	__be32 *source;

	if (!ip6)
		return DROP;
	*(__be32 *)ip6 = htonl(6 << 28 | (__u32)inner->tos << 20);
	ip6->payload_len = htons(inner->length);
	ip6->nexthdr = inner->protocol;
	ip6->hop_limit = DEFAULT_TTL;
	source = (__be32 *)&ip6->saddr;
	copy_address(6, source, backend->source);
	source[3] = flow_source(backend, backend->source[3], hash);
	copy_address(6, (__be32 *)&ip6->daddr, backend->address);
	return 0;
}

static __always_inline int forward_ipip(hook_context *ctx, const int family, struct packet *packet,
					const struct choice *choice)
{
	const struct backend *backend = choice->backend;
	__u32 header = backend->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct link_header link;
	struct inner inner;
	struct way way;
	int verdict, result;

	if (backend->family == 4)
		result = way_to_backend(ctx, 4, backend, &way);
	else
		result = way_to_backend(ctx, 6, backend, &way);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return with_reason(DROP_NO_NEIGHBOUR, DROP);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return with_reason(DROP_NO_ROUTE, DROP);
	if (!way.mtu)
		way.mtu = mtu_of(arrived_on(ctx));
	look_inside(family, packet, &inner);
	if (longest_packet(ctx, family, packet) + header > way.mtu)
		return request_too_big(packet, way.mtu - header);
	count_forwarded(backend, way.counters, frame_bytes(ctx, packet));
	verdict = set_out(ctx, packet, &way);
	keep_link_header(packet, &link);
	if (backend->family == 4) {
		if (grow_for_tunnel(ctx, 4, sizeof(struct iphdr), link.length != sizeof(struct ethernet)) ||
		    put_ip4(ctx, &link, &inner, backend, choice->hash))
			return DROP;
	} else {
		if (grow_for_tunnel(ctx, 6, sizeof(struct ipv6hdr), link.length != sizeof(struct ethernet)) ||
		    put_ip6(ctx, &link, &inner, backend, choice->hash))
			return DROP;
	}
	return verdict;
}

#endif
