/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet reaches its backend, and how the backend's reply gets the VIP back. */
#ifndef LBOPS_FORWARD_H
#define LBOPS_FORWARD_H

#include "count.h"
#include "csum.h"
#include "layout.h"
#include "next_hop.h"
#include "parse.h"

/* One hop less to live; the checksum deltas already account for it. */
static __always_inline void rewrite_destination(struct packet *packet, const struct backend *backend)
{
	packet->ip->daddr = backend->address;
	packet->ip->ttl -= 1;
	packet->ip->check = csum_add(packet->ip->check, backend->ip_delta);
	if (backend->port)
		packet->udp->dest = backend->port;
	csum_add_l4(packet, backend->l4_delta);
}

static __always_inline void rewrite_source(struct packet *packet, const struct backend *backend)
{
	packet->ip->saddr = backend->vip;
	packet->ip->ttl -= 1;
	packet->ip->check = csum_add(packet->ip->check, backend->reply_ip_delta);
	if (backend->vip_port)
		packet->udp->source = backend->vip_port;
	csum_add_l4(packet, backend->reply_l4_delta);
}

/* The kernel finishes what lacks only a neighbour: it forwards the packet once that is resolved, and lowers the TTL. */
static __always_inline int pass_unresolved(struct packet *packet)
{
	packet->ip->ttl += 1;
	packet->ip->check = csum_add(packet->ip->check, htons(1 << 8));
	return count_reason(PASS_NO_NEIGHBOUR, XDP_PASS);
}

/* The router that sent the packet here, or the host itself, is on this interface, and so are we. */
static __always_inline int send_to_mac(struct ethernet *eth, const __u8 *mac)
{
	__builtin_memcpy(eth->source, eth->destination, ETH_ALEN);
	__builtin_memcpy(eth->destination, mac, ETH_ALEN);
	return XDP_TX;
}

#ifdef FEATURE_DSR
static __always_inline int forward_dsr(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
				       __u32 id)
{
	struct next_hop *hop;
	int result;

	if (backend->has_mac) {
		count_forwarded(backend, frame_bytes(packet));
		return send_to_mac(packet->eth, backend->mac);
	}
	hop = lookup(MAP_BACKEND_NEXT_HOPS, id);
	if (!hop)
		return XDP_DROP;
	result = next_hop(ctx, hop, backend->address);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return count_reason(DROP_NO_NEIGHBOUR, XDP_DROP);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return count_reason(DROP_NO_ROUTE, XDP_DROP);
	count_forwarded(backend, frame_bytes(packet));
	return send_to(ctx, packet->eth, hop);
}
#endif

#ifdef FEATURE_DNAT
static __always_inline int forward_dnat(struct xdp_md *ctx, struct packet *packet, const struct backend *backend,
					__u32 id)
{
	struct next_hop *hop;
	int result;

	if (packet->ip->ttl <= 1)
		return count_reason(PASS_TTL_EXPIRED, XDP_PASS);
	if (backend->has_mac) {
		rewrite_destination(packet, backend);
		count_forwarded(backend, frame_bytes(packet));
		return send_to_mac(packet->eth, backend->mac);
	}
	hop = lookup(MAP_BACKEND_NEXT_HOPS, id);
	if (!hop)
		return XDP_DROP;
	result = next_hop(ctx, hop, backend->address);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return count_reason(DROP_NO_ROUTE, XDP_DROP);
	rewrite_destination(packet, backend);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return pass_unresolved(packet);
	count_forwarded(backend, frame_bytes(packet));
	return send_to(ctx, packet->eth, hop);
}

static __always_inline int forward_reply(struct xdp_md *ctx, struct packet *packet, const struct backend *backend)
{
	__be32 client = packet->ip->daddr;
	struct next_hop *hop;
	int result;

	if (packet->ip->ttl <= 1)
		return count_reason(PASS_TTL_EXPIRED, XDP_PASS);
	/* Neighbours in the last octets spread over the cache; folding mixes in the rest. */
	hop = lookup(MAP_CLIENT_NEXT_HOPS, (client ^ client >> 16) & (CLIENT_NEXT_HOPS - 1));
	if (!hop)
		return XDP_PASS;
	result = next_hop(ctx, hop, client);
	/* An address of this host: the packet answers a request of ours, not a client's. */
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return count_reason(PASS_LOCAL_REPLY, XDP_PASS);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return count_reason(DROP_NO_ROUTE, XDP_DROP);
	rewrite_source(packet, backend);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return pass_unresolved(packet);
	count_reply(backend, frame_bytes(packet));
	return send_to(ctx, packet->eth, hop);
}
#endif

#endif
