/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet reaches its backend, and how the backend's reply gets the VIP back, without a header in front. */
#ifndef LBOPS_FORWARD_H
#define LBOPS_FORWARD_H

#include "address.h"
#include "choose.h"
#include "count.h"
#include "csum.h"
#include "layout.h"
#include "next_hop.h"
#include "packet.h"
#include "parse.h"
#include "too_big.h"

/* What becomes of a packet; what is NULL or 0 stays. The deltas are those of struct backend. */
struct rewrite {
	const __be32 *source;
	const __be32 *destination;
	__be16 source_port;
	__be16 destination_port;
	int is_to_client; /* whose port may be 0 */
	__sum16 ip_delta;
	__sum16 l4_delta;
};

#ifdef HOOK_TC
/*
 * The kernel knows whether the checksum is whole or just the pseudo header's sum that hardware completes, and
 * it is the addresses alone that the latter knows of. Pointers into the packet lapse.
 */
static __always_inline void add_to_checksum(hook_context *ctx, const int family, struct packet *packet,
					    const struct rewrite *rewrite)
{
	__u32 offset = packet->l4 - (void *)packet->eth;
	__u64 addresses = rewrite->ip_delta, flags = BPF_F_PSEUDO_HDR;
	__u32 ports;

	if (family == 4)
		addresses += (__u16)~TTL_STEP;
	addresses = csum_fold_sum(addresses);
	ports = csum_fold_sum(rewrite->l4_delta + (__u64)(__u16)~addresses);
	if (packet->protocol == IPPROTO_TCP) {
		offset += offsetof(struct tcphdr, check);
		bpf_l4_csum_replace(ctx, offset, 0, addresses, flags);
		bpf_l4_csum_replace(ctx, offset, 0, ports, 0);
		return;
	}
	offset += offsetof(struct udphdr, check);
	bpf_l4_csum_replace(ctx, offset, 0, addresses, flags | BPF_F_MARK_MANGLED_0);
	bpf_l4_csum_replace(ctx, offset, 0, ports, BPF_F_MARK_MANGLED_0);
}
#else
static __always_inline void add_to_checksum(hook_context *ctx, const int family, struct packet *packet,
					    const struct rewrite *rewrite)
{
	__sum16 check;

	if (packet->protocol == IPPROTO_TCP) {
		/* Always true since parse(), which the verifier cannot see. */
		if ((void *)(packet->tcp + 1) <= packet->end)
			packet->tcp->check = csum_add(packet->tcp->check, rewrite->l4_delta);
		return;
	}
	/* In UDP, 0 means that the sender computed none; a computed 0 is sent as its other form (RFC 768). */
	if (!packet->udp->check)
		return;
	check = csum_add(packet->udp->check, rewrite->l4_delta);
	packet->udp->check = check ? check : 0xffff;
}
#endif

/*
 * One hop less to live, which ip_delta accounts for. What lacks only a neighbour the kernel finishes: it forwards
 * the packet once that is resolved, and lowers the TTL itself.
 */
static __always_inline void rewrite_network(const int family, struct packet *packet, const struct rewrite *rewrite,
					    const int resolved)
{
	if (rewrite->source)
		copy_address(family, source_of(family, packet), rewrite->source);
	if (rewrite->destination)
		copy_address(family, destination_of(family, packet), rewrite->destination);
	if (family == 4)
		packet->ip->check = csum_add(packet->ip->check, rewrite->ip_delta);
	if (resolved)
		*hop_limit(family, packet) -= 1;
	else if (family == 4)
		packet->ip->check = csum_add(packet->ip->check, (__u16)~TTL_STEP);
}

static __always_inline void rewrite_packet(hook_context *ctx, const int family, struct packet *packet,
					   const struct rewrite *rewrite, const int resolved, int has_ports)
{
	rewrite_network(family, packet, rewrite, resolved);
	/* Older verifiers do not see that what has ports has them in the frame. */
	if (!has_ports || !has_l4(packet))
		return;
	if (rewrite->source_port)
		packet->udp->source = rewrite->source_port;
	if (rewrite->destination_port || rewrite->is_to_client)
		packet->udp->dest = rewrite->destination_port;
	add_to_checksum(ctx, family, packet, rewrite);
}

/* Returns the result of the FIB lookup, or FRAG_NEEDED if the packet exceeds the MTU. MTU 0 is no limit. */
static __always_inline int check_length(hook_context *ctx, const int family, const struct packet *packet,
					const struct way *way, int result)
{
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return result;
	return longest_packet(ctx, family, packet) - 1 > (__u64)way->mtu - 1 ? BPF_FIB_LKUP_RET_FRAG_NEEDED : result;
}

/* Rewrites all but the TTL and passes the packet: the kernel resolves the neighbour, or fragments the packet. */
static __always_inline int leave_to_kernel(hook_context *ctx, const int family, struct packet *packet,
					   const struct rewrite *rewrite, int has_ports, int result)
{
	rewrite_packet(ctx, family, packet, rewrite, 0, has_ports);
	return with_reason(result == BPF_FIB_LKUP_RET_NO_NEIGH ? PASS_NO_NEIGHBOUR : PASS_TOO_BIG, PASS);
}

/* To the backend: the answer of FIB and neighbours is known to be a way, or none. */
static __always_inline int send_rewritten(hook_context *ctx, const int family, struct packet *packet,
					  const struct choice *choice, const struct rewrite *rewrite,
					  int has_ports)
{
	struct way way;
	int verdict, result = way_to_backend(ctx, family, choice->backend, &way);

	result = check_length(ctx, family, packet, &way, result);
	if (result == BPF_FIB_LKUP_RET_SUCCESS) {
		count_forwarded(choice->backend, way.counters, frame_bytes(ctx, packet));
		verdict = set_out(ctx, packet, &way);
		rewrite_packet(ctx, family, packet, rewrite, 1, has_ports);
		return verdict;
	}
	/* The kernel does not forward packets from a source address of the balancer, so full_nat cannot pass this one. */
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED && (rewrite->source || !may_be_fragmented(family, packet)))
		return request_too_big(packet, way.mtu);
	if (result != BPF_FIB_LKUP_RET_NO_NEIGH && result != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return with_reason(DROP_NO_ROUTE, DROP);
	if (rewrite->source)
		return with_reason(DROP_NO_NEIGHBOUR, DROP);
	return leave_to_kernel(ctx, family, packet, rewrite, has_ports, result);
}

static __always_inline int send_reply(hook_context *ctx, const int family, struct packet *packet,
				      const struct backend *backend, const __be32 *client,
				      const struct rewrite *rewrite, int has_ports)
{
	struct way way;
	int verdict, result;

	if (*hop_limit(family, packet) <= 1)
		return with_reason(PASS_TTL_EXPIRED, PASS);
	result = way_to_client(ctx, family, client, &way);
	result = check_length(ctx, family, packet, &way, result);
	if (result == BPF_FIB_LKUP_RET_SUCCESS) {
		count_reply(backend, frame_bytes(ctx, packet));
		verdict = set_out(ctx, packet, &way);
		rewrite_packet(ctx, family, packet, rewrite, 1, has_ports);
		return verdict;
	}
	/* An address of this host: the packet answers a request of ours, not a client's. */
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return with_reason(PASS_LOCAL_REPLY, PASS);
	if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED && !may_be_fragmented(family, packet))
		return request_too_big(packet, way.mtu);
	if (result != BPF_FIB_LKUP_RET_NO_NEIGH && result != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return with_reason(DROP_NO_ROUTE, DROP);
	return leave_to_kernel(ctx, family, packet, rewrite, has_ports, result);
}

#ifdef FEATURE_DNAT
static __always_inline int forward_dnat(hook_context *ctx, const int family, struct packet *packet,
					const struct choice *choice, int has_ports)
{
	struct rewrite rewrite = {
		.destination = choice->backend->address,
		.destination_port = choice->backend->port,
		.ip_delta = choice->backend->ip_delta,
		.l4_delta = choice->backend->l4_delta,
	};

	return send_rewritten(ctx, family, packet, choice, &rewrite, has_ports);
}

static __always_inline int forward_reply(hook_context *ctx, const int family, struct packet *packet,
					 const struct backend *backend, int has_ports)
{
	struct rewrite rewrite = {
		.source = backend->vip,
		.source_port = backend->vip_port,
		.ip_delta = backend->reply_ip_delta,
		.l4_delta = backend->reply_l4_delta,
	};

	return send_reply(ctx, family, packet, backend, destination_of(family, packet), &rewrite, has_ports);
}
#endif

#ifdef FEATURE_FULL_NAT
/* Over IPv4 the header's delta has the TTL in it. */
static __always_inline __sum16 with_ttl_step(const int family, __sum16 addresses)
{
	return family == 4 ? csum_fold_sum((__u64)addresses + TTL_STEP) : addresses;
}

static __always_inline int forward_full_nat(hook_context *ctx, const int family, struct packet *packet,
					    const struct choice *choice, int has_ports)
{
	const struct backend *backend = choice->backend;
	struct session *session = choice->session;
	struct rewrite rewrite = {
		.source = backend->source,
		.destination = backend->address,
		.source_port = session_source_port(backend, choice->number),
		.destination_port = backend->port,
	};

	if (!session)
		return with_reason(DROP_NO_PORT, DROP);
	rewrite.ip_delta = with_ttl_step(family, session->address_delta);
	rewrite.l4_delta = session->l4_delta;
	if (has_ports)
		note_packet(family, session, packet, 1, clock_ticks());
	return send_rewritten(ctx, family, packet, choice, &rewrite, has_ports);
}

static __always_inline int forward_session_reply(hook_context *ctx, const int family, struct packet *packet,
						 const struct backend *backend, struct session *session,
						 int has_ports)
{
	struct rewrite rewrite = {
		.source = backend->vip,
		.destination = session->client,
		.source_port = session->vip_port,
		.destination_port = session->client_port,
		.is_to_client = 1,
		/* The way back is the opposite. */
		.ip_delta = with_ttl_step(family, (__u16)~session->address_delta),
		.l4_delta = (__u16)~session->l4_delta,
	};

	if (has_ports)
		note_packet(family, session, packet, 0, clock_ticks());
	return send_reply(ctx, family, packet, backend, session->client, &rewrite, has_ports);
}
#endif

#ifdef FEATURE_DSR
static __always_inline int forward_dsr(hook_context *ctx, const int family, struct packet *packet,
				       const struct choice *choice)
{
	struct way way;
	int result = way_to_backend(ctx, family, choice->backend, &way);

	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return with_reason(DROP_NO_NEIGHBOUR, DROP);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return with_reason(DROP_NO_ROUTE, DROP);
	/* The kernel sees a packet for the VIP, which it would not forward to the backend. */
	if (check_length(ctx, family, packet, &way, result) != result)
		return request_too_big(packet, way.mtu);
	count_forwarded(choice->backend, way.counters, frame_bytes(ctx, packet));
	return set_out(ctx, packet, &way);
}
#endif

#ifdef FEATURE_LOCAL
/*
 * To this host, whose kernel takes the packet as it is: the VIP is one of its addresses. At the tc hook the verdict is
 * negative and looks as if it had a reason, for which there is no counter.
 */
static __always_inline int pass_to_host(hook_context *ctx, const struct packet *packet, const struct choice *choice)
{
	struct backend_counters *counters = lookup(MAP_BACKEND_COUNTERS, choice->backend->backend_counters);

	if (counters)
		count_forwarded(choice->backend, counters, frame_bytes(ctx, packet));
	return PASS;
}
#endif

#ifdef FEATURE_REDIRECT
#define LINKS_TRIED 32

/* An interface is in the device map while its link is up; without it, other slots of the table say who stands in. */
static __always_inline int forward_redirect(hook_context *ctx, const struct packet *packet,
					    const struct choice *choice)
{
	__u64 hash = choice->slot_hash;
	struct backend *backend = choice->backend;
	struct backend_counters *counters;
	int tries, verdict;

	for (tries = 0; tries < LINKS_TRIED; tries++) {
		verdict = bpf_redirect_map(MAP_LINKS, backend->interface, 0);
		if (verdict == XDP_REDIRECT) {
			counters = lookup(MAP_BACKEND_COUNTERS, backend->backend_counters);
			if (counters)
				count_forwarded(backend, counters, frame_bytes(ctx, packet));
			return verdict;
		}
		/* A later fragment has no ports that would say where else to go. */
		if (!choice->rules)
			break;
		hash = hash * ENDPOINT_MULTIPLIER + 1;
		backend = lookup(MAP_BACKENDS, hashed(choice->service, choice->rules, hash));
		if (!backend)
			break;
	}
	return with_reason(DROP_LINK_DOWN, DROP);
}
#endif

#endif
