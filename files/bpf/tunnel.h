/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A header in front of the packet takes it to the backend: IPv4 (RFC 2003, RFC 4213) or IPv6 (RFC 2473); for gue with one
 * of UDP and one of GUE (draft-ietf-intarea-gue-09, variant 0 without options) behind it.
 */
#ifndef LBOPS_TUNNEL_H
#define LBOPS_TUNNEL_H

#include "address.h"
#include "choose.h"
#include "count.h"
#include "csum.h"
#include "link_header.h"
#include "packet.h"
#include "random.h"
#include "too_big.h"

struct gue {
	struct udphdr udp;
	__u8 variant; /* with the control flag, and the length of options in words */
	__u8 protocol;
	__be16 flags;
};

/* Source ports of gue: so many of the highest ones, which are ephemeral (RFC 6335, section 6). */
#define GUE_SOURCE_PORTS 16384

/* As much as there may be of headers in front; a frame that has grown by less still has as many bytes. */
#ifdef FEATURE_GUE
#define OUTER_BYTES(ip_header) (sizeof(ip_header) + sizeof(struct gue))
#else
#define OUTER_BYTES(ip_header) sizeof(ip_header)
#endif

/* What the outer headers take over from the inner one. */
struct inner {
	__u32 length; /* with the headers of UDP and GUE */
	__u8 tos;
	__be16 identification;
	__be16 dont_fragment;
	__u8 protocol;       /* as the header in front calls it */
	__u8 outer_protocol; /* as the outer IP header calls what is behind it */
};

static __always_inline __u8 traffic_class(const struct packet *packet)
{
	return ntohl(*(__be32 *)packet->network) >> 20;
}

static __always_inline void look_inside(const int family, const struct packet *packet, __u32 gue_bytes,
					struct inner *inner)
{
	inner->length = network_length(family, packet) + gue_bytes;
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
	inner->outer_protocol = gue_bytes ? IPPROTO_UDP : inner->protocol;
}

static __always_inline __be32 flow_source(const struct backend *backend, __be32 base, __u64 hash)
{
	return base | ((__u32)(hash >> 32) & backend->source_mask);
}

/*
 * Without a checksum, which would have to sum up the whole packet: RFC 768 allows that over IPv4, RFC 6935 and RFC 6936 over
 * IPv6 for tunnels whose inner packets have checksums of their own.
 */
static __always_inline void put_gue(struct gue *gue, const struct inner *inner, const struct backend *backend,
				    __u64 hash)
{
	gue->udp.source = htons(65536 - GUE_SOURCE_PORTS + (hash & (GUE_SOURCE_PORTS - 1)));
	gue->udp.dest = backend->port;
	gue->udp.len = htons(inner->length);
	gue->udp.check = 0;
	gue->variant = 0;
	gue->protocol = inner->protocol;
	gue->flags = 0;
}

static __always_inline int put_ip4(hook_context *ctx, const struct link_header *link, const struct inner *inner,
				   const struct backend *backend, __u64 hash)
{
	struct iphdr *ip = put_link_header(ctx, link, htons(ETH_P_IP), OUTER_BYTES(*ip));
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
	ip->protocol = inner->outer_protocol;
	ip->saddr = source;
	ip->daddr = backend->address[0];
	/* Version, TTL, protocol and destination are summed up already. */
	ip->check = ~csum_fold_sum((__u64)backend->header_sum + source + htons(inner->tos) +
				   htons(inner->length + sizeof(*ip)) + inner->identification + inner->dont_fragment);
	if (inner->outer_protocol == IPPROTO_UDP)
		put_gue((void *)(ip + 1), inner, backend, hash);
	return 0;
}

static __always_inline int put_ip6(hook_context *ctx, const struct link_header *link, const struct inner *inner,
				   const struct backend *backend, __u64 hash)
{
	struct ipv6hdr *ip6 = put_link_header(ctx, link, htons(ETH_P_IPV6), OUTER_BYTES(*ip6));
	__be32 *source;

	if (!ip6)
		return DROP;
	*(__be32 *)ip6 = htonl(6 << 28 | (__u32)inner->tos << 20);
	ip6->payload_len = htons(inner->length);
	ip6->nexthdr = inner->outer_protocol;
	ip6->hop_limit = DEFAULT_TTL;
	source = (__be32 *)&ip6->saddr;
	copy_address(6, source, backend->source);
	source[3] = flow_source(backend, backend->source[3], hash);
	copy_address(6, (__be32 *)&ip6->daddr, backend->address);
	if (inner->outer_protocol == IPPROTO_UDP)
		put_gue((void *)(ip6 + 1), inner, backend, hash);
	return 0;
}

/* ipip, or gue with the bytes that it puts behind the outer IP header. */
static __always_inline int forward_in_tunnel(hook_context *ctx, const int family, struct packet *packet,
					     const struct choice *choice, __u32 gue_bytes)
{
	const struct backend *backend = choice->backend;
	__u32 header = gue_bytes + (backend->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
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
	look_inside(family, packet, gue_bytes, &inner);
	if (longest_packet(ctx, family, packet) + header > way.mtu)
		return request_too_big(packet, way.mtu - header);
	count_forwarded(backend, way.counters, frame_bytes(ctx, packet));
	verdict = set_out(ctx, packet, &way);
	keep_link_header(packet, &link);
	if (backend->family == 4) {
		if (grow_for_tunnel(ctx, 4, header, gue_bytes, link.length != sizeof(struct ethernet)) ||
		    put_ip4(ctx, &link, &inner, backend, choice->hash))
			return DROP;
	} else {
		if (grow_for_tunnel(ctx, 6, header, gue_bytes, link.length != sizeof(struct ethernet)) ||
		    put_ip6(ctx, &link, &inner, backend, choice->hash))
			return DROP;
	}
	return verdict;
}

#endif
